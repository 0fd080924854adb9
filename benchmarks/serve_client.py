"""What the benchmarks of the server share: the process, a small client, and questions."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from la_trt.lookworld import WorldConfig, sample

CHAT = "/v1/chat/completions"
NAME = "bench"
_START_S = 300.0


@dataclass
class ServerProcess:
    """`la-trt serve` on a free port of 127.0.0.1."""

    process: subprocess.Popen[str]
    port: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)

    def read_log(self) -> None:
        """Keep what it says until it ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                record = json.loads(line)
                if record["event"] != "request":
                    self.log.append(record)
            else:
                print(line, end="", file=sys.stderr)

    def event(self, name: str) -> dict[str, Any]:
        """The first record of that name, waited for."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            for record in tuple(self.log):
                if record["event"] == name:
                    return record
            time.sleep(0.05)
        raise RuntimeError(f"the server never said {name!r}")


@contextlib.contextmanager
def serving(
    *flags: str, backend: str = "native", engine: Path | None = None
) -> Iterator[ServerProcess]:
    """A bundle, or the shipped model, on `backend` until the block ends."""
    with tempfile.TemporaryDirectory(prefix="la-trt-bench-") as work:
        bundle = engine or Path(work) / NAME
        if engine is None:
            build = [sys.executable, "-m", "la_trt.cli", "build", "--output", str(bundle)]
            subprocess.run([*build, "--ckpt", "la_trt/assets/tiny"], check=True, stdout=sys.stderr)
        command = [sys.executable, "-m", "la_trt.cli", "serve", "--engine", str(bundle)]
        command += ["--backend", backend, "--served-model-name", NAME, "--port", "0", *flags]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        server = ServerProcess(process)
        reader = threading.Thread(target=server.read_log, daemon=True)
        reader.start()
        try:
            server.port = int(server.event("listening")["port"])
            server.event("ready")
            yield server
        finally:
            process.terminate()
            if process.wait(60) != 0:
                print("the server did not end with exit code 0", file=sys.stderr)
            reader.join(10)


@dataclass
class Reply:
    """One answered request: its text, tokens, and seconds from sending to each."""

    status: int
    seconds: float
    first_s: float | None = None
    content: str = ""
    reasoning: str = ""
    num_tokens: int = 0
    headers: dict[str, str] = field(default_factory=dict)


async def post(
    port: int,
    body: dict[str, Any],
    *,
    leave_after: int | None = None,
    on_headers: Callable[[Reply], Any] | None = None,
) -> Reply:
    """Send a chat request; leaves after so many chunks of a stream if `leave_after` is given.

    `on_headers` gets the reply as soon as its headers are in.
    """
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        data = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(data)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + data)
        if leave_after == 0:
            await writer.drain()
            return Reply(status=0, seconds=time.perf_counter() - started)
        status = int((await reader.readline()).split()[1])
        reply = Reply(status=status, seconds=0.0)
        while line := (await reader.readline()).decode("latin-1").strip():
            name, _, value = line.partition(":")
            reply.headers[name.lower()] = value.strip()
        if on_headers is not None:
            on_headers(reply)
        if body.get("stream") and status == 200:
            await _read_stream(reader, reply, started, leave_after)
        else:
            _read_whole(await reader.read(), reply)
        reply.seconds = time.perf_counter() - started
        return reply
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _read_stream(
    reader: asyncio.StreamReader, reply: Reply, started: float, leave_after: int | None
) -> None:
    num_chunks = 0
    async for chunk in _chunks(reader):
        num_chunks += 1
        if leave_after is not None and num_chunks >= leave_after:
            return
        if "error" in chunk:
            reply.status = 500
            return
        if chunk.get("usage"):
            reply.num_tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
            if text and reply.first_s is None:
                reply.first_s = time.perf_counter() - started
            reply.content += delta.get("content") or ""
            reply.reasoning += delta.get("reasoning_content") or ""


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            yield json.loads(line[len(b"data: ") :])


def _read_whole(body: bytes, reply: Reply) -> None:
    text = body[body.index(b"{") : body.rindex(b"}") + 1] if b"{" in body else b"{}"
    value = json.loads(text)
    if reply.status == 200:
        message = value["choices"][0]["message"]
        reply.content, reply.reasoning = message["content"], message["reasoning_content"] or ""
        reply.num_tokens = value["usage"]["completion_tokens"]


async def metric(port: int, name: str) -> float:
    """The value of one metric without labels of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    found = re.search(rf"^lookagain:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@dataclass(frozen=True)
class Question:
    """A question of LookWorld about a picture of its own, and the right answer."""

    text: str
    url: str
    answer: str


def questions(num: int) -> list[Question]:
    """The first questions of the test split, each about another scene."""
    found = []
    for index in range(num):
        drawn = sample("test", index, WorldConfig(), family="count")
        out = io.BytesIO()
        assert drawn.image is not None
        drawn.image.save(out, "PNG")
        url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
        found.append(Question(drawn.question.text, url, drawn.answer))
    return found


def request(question: Question | str, **fields: Any) -> dict[str, Any]:
    """The body of a greedy chat request."""
    content: Any = question
    if isinstance(question, Question):
        image = {"type": "image_url", "image_url": {"url": question.url}}
        content = [image, {"type": "text", "text": question.text}]
    messages = [{"role": "user", "content": content}]
    return {"model": NAME, "temperature": 0, "messages": messages} | fields
