"""Which replica a request should go to: that which has seen its image before."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from la_trt.errors import InputError
from la_trt.files.strict_json import parse_json


def parsed(body: bytes) -> Any:
    """The JSON of a body, None where it is none: the replica will say what is wrong with it."""
    try:
        return parse_json(body, where="body", todo="", error=InputError, max_bytes=len(body))
    except InputError:
        return None


def image_key(value: Any) -> str:
    """A digest of the first image of a chat request's body, '' where it has none.

    Of the URL as it stands, so that a relay decodes no image. Later turns of a conversation
    begin with the same image and go where its embeddings and KV are.
    """
    for url in _urls(value):
        return hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()
    return ""


def order(key: str, replicas: Iterable[str]) -> list[str]:
    """The replicas from the most to the least preferred: rendezvous hashing.

    When one goes or comes, only the keys move that it had or that it gets.
    """

    def weight(replica: str) -> bytes:
        return hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()

    return sorted(replicas, key=weight, reverse=True)


def with_seed(body: bytes, value: Any) -> bytes:
    """The body with a random seed where it names none, so that it can be answered again alike."""
    if not isinstance(value, dict) or not value or value.get("seed") is not None:
        return body
    if "seed" in value:  # null: the key must not stand twice
        return body
    brace = body.index(b"{") + 1
    return body[:brace] + f'"seed":{secrets.randbelow(1 << 31)},'.encode() + body[brace:]


def _urls(value: Any) -> Iterator[str]:
    messages = value.get("messages") if isinstance(value, dict) else None
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            image = part.get("image_url") if isinstance(part, dict) else None
            url = image.get("url") if isinstance(image, dict) else image
            if isinstance(url, str):
                yield url
