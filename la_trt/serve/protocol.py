"""uvicorn's HTTP/1.1 protocol with the contract's answers to what never becomes a request."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from la_trt.serve.errors import ApiError
from la_trt.serve.settings import HttpLimits
from la_trt.serve.wire import to_json

_LINGER_S = 1.0


def protocol_with(limits: HttpLimits) -> type[asyncio.Protocol]:
    """The protocol class under these limits."""

    class Protocol(_Protocol):
        http_limits = limits

    return Protocol


class _Protocol(H11Protocol):
    """Headers that are malformed, too large or too slow get a JSON error, then the end."""

    http_limits: HttpLimits
    _headers_due: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        idle = self.conn.their_state is h11.IDLE
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._headers_came()
        elif idle and self._headers_due is None and not self.transport.is_closing():
            self._expect_headers()

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 could not read; its hint tells a 431 from a 400."""
        problem = sys.exc_info()[1]
        if getattr(problem, "error_status_hint", 400) == 431:
            limit = self.http_limits.max_header_bytes
            error = ApiError(431, f"headers: more than {limit} bytes", code="headers_too_large")
        else:
            error = ApiError(400, "not a valid HTTP request", code="bad_request")
        self._end_with(error)

    def _expect_headers(self) -> None:
        delay = self.http_limits.header_timeout_s
        self._headers_due = self.loop.call_later(delay, self._headers_late)

    def _headers_came(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _headers_late(self) -> None:
        self._headers_due = None
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._end_with(ApiError(408, "the headers did not arrive in time", code="timeout"))
        else:
            self.transport.close()

    def _end_with(self, error: ApiError) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = to_json(error.body())
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            response = h11.Response(
                status_code=error.status, headers=headers, reason=STATUS_PHRASES[error.status]
            )
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        # What still comes is let in for a moment: closing at once would reset the connection,
        # and the client might never see the answer.
        self._refused = True
        self._headers_came()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)
