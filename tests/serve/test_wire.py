"""Below the level of requests: sizes, slowness and bytes that are no HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from la_trt.serve.settings import HttpLimits
from tests.serve.running import WAIT_S, Running, chat, open_bundle, running

LIMITS = HttpLimits(
    max_body_bytes=100_000,
    max_header_bytes=2_000,
    body_timeout_s=1.0,
    header_timeout_s=1.0,
)
CHAT = "/v1/chat/completions"
START = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n".encode()


@pytest.fixture(scope="module")
def narrow(bundle: Path, backend: str) -> Iterator[Running]:
    with running(lambda: open_bundle(bundle, backend, max_batch=2), http=LIMITS) as found:
        yield found


def talk(server: Running, *parts: bytes) -> tuple[int, bytes]:
    """The status and body that the server answers to raw bytes, once it has closed."""
    address = ("127.0.0.1", server.server.port)
    with socket.create_connection(address, timeout=WAIT_S) as connected:
        for part in parts:
            connected.sendall(part)
        answer = b""
        while chunk := connected.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


def code_of(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def test_a_body_over_the_limit_is_refused_by_its_length(narrow: Running) -> None:
    head = START + b"content-length: 100001\r\n\r\n"
    assert talk(narrow, head, b" " * 100_001)[0] == 413
    # A client that waits for leave to send never sends it.
    status, body = talk(narrow, head[:-2] + b"expect: 100-continue\r\n\r\n")
    assert (status, code_of(body)) == (413, "body_too_large")


def test_a_body_over_the_limit_is_counted_while_it_is_read(narrow: Running) -> None:
    chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    status, body = talk(
        narrow, START + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 11, b"0\r\n\r\n"
    )
    assert (status, code_of(body)) == (413, "body_too_large")


def test_a_body_that_does_not_come_is_not_waited_for(narrow: Running) -> None:
    status, body = talk(narrow, START + b"content-length: 50\r\n\r\n{")
    assert (status, code_of(body)) == (408, "timeout")


def test_headers_that_do_not_come_are_not_waited_for(narrow: Running) -> None:
    status, body = talk(narrow, b"GET /health HTTP/1.1\r\nhost: x\r\n")
    assert (status, code_of(body)) == (408, "timeout")
    assert talk(narrow) == (0, b""), "a connection without a request is closed in silence"


@pytest.mark.parametrize("size", [2_001, 20_000, 200_000])
def test_headers_over_the_limit_are_refused(narrow: Running, size: int) -> None:
    head = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-long: " + b"a" * size
    status, body = talk(narrow, head + b"\r\n\r\n")
    assert (status, code_of(body)) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00", b"HELLO\r\n\r\n", b"GET / HTTP/9\r\n\r\n"]
)
def test_what_is_no_http_is_refused(narrow: Running, data: bytes) -> None:
    status, body = talk(narrow, data + b"\r\n\r\n")
    assert (status, code_of(body)) == (400, "bad_request")


def test_two_requests_on_one_connection_are_answered_in_order(narrow: Running) -> None:
    body = json.dumps(chat()).encode()
    first = START + b"content-length: %d\r\n\r\n" % len(body) + body
    second = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    address = ("127.0.0.1", narrow.server.port)
    with socket.create_connection(address, timeout=WAIT_S) as connected:
        connected.sendall(first + second)
        answer = b""
        while chunk := connected.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.index(b"chat.completion") < answer.index(b'"version"')


def test_a_slow_body_takes_no_step_from_others(narrow: Running) -> None:
    address = ("127.0.0.1", narrow.server.port)
    with socket.create_connection(address, timeout=WAIT_S) as slow:
        slow.sendall(START + b"content-length: 50\r\n\r\n{")
        assert narrow.post(CHAT, chat())[0] == 200
