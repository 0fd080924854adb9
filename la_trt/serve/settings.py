"""What the server is told: where it listens, whom it lets in, and its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from la_trt.errors import UsageError
from la_trt.limits import DEFAULT_MAX_TOKENS, MIB

MIN_API_KEY_CHARS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds on what one connection may do. Bytes, seconds and counts."""

    max_body_bytes: int = 64 * MIB
    max_header_bytes: int = 16 << 10
    max_json_depth: int = 100
    body_timeout_s: float = 30.0
    header_timeout_s: float = 10.0
    send_timeout_s: float = 60.0
    keep_alive_s: float = 5.0
    max_n: int = 8
    max_top_logprobs: int = 20
    max_prompts: int = 64  # of one /v1/completions request

    def __post_init__(self) -> None:
        _positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAccess:
    """Where images may come from besides the request itself; by default nowhere.

    `hosts`: exact host names that may be asked over http and https. `local_root`: the
    directory below which `file://` URLs may name files.
    """

    hosts: tuple[str, ...] = ()
    local_root: Path | None = None
    max_redirects: int = 3
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.local_root is not None and not self.local_root.is_dir():
            raise UsageError(f"{self.local_root}: no such directory of local images")
        for host in self.hosts:
            if not host or any(c in host for c in "/:@?#* "):
                raise UsageError(f"image host {host!r}: expected a plain host name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Everything about the server that is not the model.

    `port` 0 takes a free one. `api_keys` empty: no key is asked for. `prefill_chunk`: prompt
    tokens in one engine step, for all requests together. `default_max_tokens` holds for
    requests that name none. `vision_cache_bytes`: of kept image embeddings, 0 keeps none.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    policy: str = "copy"
    max_waiting: int = 64
    prefill_chunk: int = 128
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    vision_cache_bytes: int = 256 * MIB
    prefix_cache: bool = True
    drain_s: float = 30.0
    http: HttpLimits = field(default_factory=HttpLimits)
    images: ImageAccess = field(default_factory=ImageAccess)

    def __post_init__(self) -> None:
        if not self.model_name or len(self.model_name) > 200:
            raise UsageError("model name: expected 1 to 200 characters")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port: expected 0 to 65535, got {self.port}")
        for name in ("prefill_chunk", "default_max_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("max_waiting", "vision_cache_bytes", "drain_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"{name}: expected a number of at least 0, got {value}")
        if not all(map(is_api_key, self.api_keys)):
            raise UsageError(f"API key: expected at least {MIN_API_KEY_CHARS} ASCII characters")


def is_api_key(text: str) -> bool:
    """Whether a text is long and plain enough to be asked for as a key."""
    return len(text) >= MIN_API_KEY_CHARS and text.isascii()


def _positive(settings: HttpLimits) -> None:
    for f in fields(settings):
        value = getattr(settings, f.name)
        if not 0 < value < math.inf:
            raise UsageError(f"{f.name}: expected a number above 0, got {value}")
