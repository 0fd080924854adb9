"""An answer whose replica may die: what the client has of it, and what is still to be sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
_DATA = b"data: "


class Diverged(Exception):
    """A second replica answers otherwise than the first one began."""


class Replay:
    """Passes the ASGI messages of an answer on, through as many attempts as it takes.

    The request is the same each time, its seed included, so a later attempt begins with the
    events that the client has already: they are compared and left out, and those that follow
    get the id of the first attempt. An answer that is not streamed comes in one piece or not at
    all.
    """

    def __init__(self) -> None:
        self.started = False
        self._held: list[Message] = []  # of an answer that is not streamed
        self._sent: dict[int, list[Any]] = {}
        self._seen: dict[int, int] = {}
        self._head: dict[str, Any] = {}

    def again(self) -> None:
        """A new attempt begins."""
        self._seen, self._held = {}, []

    def take(self, message: Message) -> Iterator[Message]:
        """What of a replica's message the client is to get. Raises Diverged."""
        if message["type"] == "http.response.start":
            if not _is_stream(message):
                if self.started:
                    raise Diverged
                self._held = [message]
            elif not self.started:
                self.started = True
                yield message
            return
        if self._held:
            self._held.append(message)
            if not message.get("more_body", False):
                self.started = True
                yield from self._held
            return
        kept = b"".join(self._events(message.get("body", b"")))
        if kept or not message.get("more_body", False):
            yield {**message, "body": kept}

    def _events(self, body: bytes) -> Iterator[bytes]:
        for line in body.split(b"\n\n"):
            if not line.startswith(_DATA + b"{"):
                if line:
                    yield line + b"\n\n"
                continue
            event = json.loads(line[len(_DATA) :])
            if self._is_new(event):
                event |= self._head
                text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
                yield _DATA + text.encode("utf-8", "backslashreplace") + b"\n\n"

    def _is_new(self, event: dict[str, Any]) -> bool:
        if "error" in event:
            return True
        if not self._head:
            self._head = {name: event[name] for name in ("id", "created") if name in event}
        choices = event.get("choices") or [{}]
        index = choices[0].get("index", -1)
        said = [
            {k: choices[0].get(k) for k in ("delta", "text", "finish_reason")},
            [e["type"] for e in (event.get("lookagain") or {}).get("events", [])],
        ]
        sent, seen = self._sent.setdefault(index, []), self._seen.get(index, 0)
        self._seen[index] = seen + 1
        if seen == len(sent):
            sent.append(said)
            return True
        if sent[seen] != said:
            raise Diverged
        return False


def _is_stream(message: Message) -> bool:
    return any(k == b"content-type" and b"event-stream" in v for k, v in message["headers"])
