"""One HTTP exchange: a body read within limits, an answer sent, a client that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Coroutine
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from la_trt.serve.errors import ApiError, invalid
from la_trt.serve.settings import HttpLimits

_LINGER_S = 2.0
_LINGER_BYTES = 8 << 20
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
GONE = 499  # in logs and metrics alone: the client left


class ClientGone(Exception):
    """The client closed the connection, or reads too slowly."""


def to_json(value: Any) -> bytes:
    """One line of JSON in UTF-8; a lone surrogate, which UTF-8 cannot spell, is escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class Wire:
    """The ASGI callables of one request, with what has happened on them."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: HttpLimits) -> None:
        self.status = 0
        self._receive, self._send, self._limits = receive, send, limits
        self._headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        given = self._headers.get("x-request-id", b"").decode("latin-1")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{time.time_ns():x}"
        self._body_done = False

    async def body(self) -> bytes:
        """The request's body. Raises ApiError 400, 408 or 413, ClientGone."""
        media = self._headers.get("content-type", b"").split(b";")[0].strip().lower()
        if media != b"application/json":
            raise invalid(None, "content-type: expected application/json", "invalid_content_type")
        encoding = self._headers.get("content-encoding", b"identity").strip().lower()
        if encoding != b"identity":
            raise invalid(
                None,
                "content-encoding: not supported, send the body as it is",
                "invalid_content_encoding",
            )
        declared = self._headers.get("content-length", b"0")
        if declared.isdigit() and int(declared) > self._limits.max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                return await self._whole_body()
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", code="timeout") from None

    async def _whole_body(self) -> bytes:
        chunks, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._limits.max_body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            if not message.get("more_body", False):
                self._body_done = True
                return b"".join(chunks)

    def _too_large(self) -> ApiError:
        limit = self._limits.max_body_bytes
        return ApiError(413, f"body: more than {limit} bytes", code="body_too_large")

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, cancelled as soon as the client is gone (ClientGone)."""
        working = asyncio.create_task(work)
        leaving = asyncio.create_task(self._until_gone())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGone
            working.result()
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self, value: Any, *, status: int = 200) -> None:
        """Answer with one JSON object."""
        await self._answer(status, to_json(value), {})

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error; a body not yet read is let in for a moment, then cut off.

        Closing at once would reset the connection, and the client might never see the answer.
        """
        if self.status:
            return
        body, headers = to_json(error.body()), dict(error.headers)
        if self._body_done:
            await self._answer(error.status, body, headers)
            return
        await self._start(
            error.status,
            "application/json",
            headers
            | {
                "content-length": str(len(body)),
                "connection": "close",
            },
        )
        await self._put({"type": "http.response.body", "body": body, "more_body": True})
        if "expect" not in self._headers:
            await self._linger()
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while size < _LINGER_BYTES:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return

    async def start_stream(self) -> None:
        """The headers of a stream of server-sent events."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        await self._start(200, "text/event-stream; charset=utf-8", headers)

    async def stream(self, values: list[Any]) -> None:
        """Events of a stream, sent together."""
        data = b"".join(b"data: " + to_json(value) + b"\n\n" for value in values)
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        """The end of a stream."""
        await self._put({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        length = {"content-length": str(len(body))}
        await self._start(status, "application/json", headers | length)
        await self._put({"type": "http.response.body", "body": body})

    async def _start(self, status: int, media: str, headers: dict[str, str]) -> None:
        self.status = status
        given = {"content-type": media, "x-request-id": self.request_id} | headers
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]
        await self._put({"type": "http.response.start", "status": status, "headers": raw})

    async def _put(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._send(message)
        except (TimeoutError, OSError):
            raise ClientGone from None
