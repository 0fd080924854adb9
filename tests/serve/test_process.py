"""The command as a process: signals, exit codes, logs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.serve.running import ask, chat, png, wait_until

SECRET = "a sentence that belongs to nobody else"


class Process:
    """`la-trt serve` on a free port, its log being read."""

    def __init__(self, *arguments: str, program: Sequence[str] = ("-m", "la_trt.cli")) -> None:
        command = [sys.executable, *program, "serve", "--port", "0", *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "LA_TRT_API_KEY"}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def events(self, name: str) -> list[dict[str, Any]]:
        parsed = [json.loads(line) for line in tuple(self.lines) if line.startswith("{")]
        return [line for line in parsed if line["event"] == name]

    def ready(self) -> Process:
        wait_until(lambda: bool(self.events("ready")) or self.process.poll() is not None)
        assert self.events("ready"), self.lines
        return self

    def post(self, body: dict[str, Any]) -> int:
        port = self.events("listening")[0]["port"]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()
            return int(response.status)

    def places(self) -> int:
        """Requests that wait or run, by the metrics."""
        port = self.events("listening")[0]["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
            text = response.read().decode()
        names = ("num_requests_running", "num_requests_waiting")
        values = [re.search(rf"^lookagain:{n}{{.*}} (.*)$", text, re.MULTILINE) for n in names]
        return sum(int(float(value[1])) for value in values if value)

    def end(self) -> tuple[int, str]:
        code = self.process.wait(60)
        self._reader.join(60)
        assert self.process.stdout is not None and self.process.stderr is not None
        out = self.process.stdout.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return code, out


@pytest.fixture
def served(bundle: Path, backend: str) -> Iterator[Process]:
    process = Process("--engine", str(bundle), "--backend", backend, "--threads", "1")
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.end()


def test_sigterm_drains_and_the_log_holds_nothing_of_the_requests(served: Process) -> None:
    served.ready()
    image = png("teal")
    answers: list[int] = []
    body = chat(messages=ask(SECRET, image), model="tiny", max_tokens=600)
    asking = threading.Thread(target=lambda: answers.append(served.post(body)))
    asking.start()
    assert served.post(chat(model="tiny", max_tokens=2)) == 200
    served.process.send_signal(signal.SIGTERM)
    asking.join(60)
    code, out = served.end()
    assert (code, out, answers) == (0, "", [200])
    requests = served.events("request")
    assert {r["status"] for r in requests} == {200} and len(requests) == 2
    assert {"id", "route", "total_ms", "prompt_tokens", "finish"} <= set(requests[0])
    log = "".join(served.lines)
    for hidden in (SECRET, base64.b64encode(image).decode()[:24], "nobody"):
        assert hidden not in log


def test_a_second_signal_stops_at_once_and_says_what_was_cut_off(served: Process) -> None:
    served.ready()
    bodies = [chat(model="tiny", max_tokens=3900, n=8) for _ in range(8)]
    refused: list[int] = []

    def ask_and_be_cut_off(body: dict[str, Any]) -> None:
        with pytest.raises(urllib.error.HTTPError) as cut_off:
            served.post(body)
        refused.append(cut_off.value.code)
        cut_off.value.close()

    asking = [threading.Thread(target=ask_and_be_cut_off, args=(body,)) for body in bodies]
    for thread in asking:
        thread.start()
    wait_until(lambda: served.places() >= len(bodies))
    served.process.send_signal(signal.SIGTERM)
    wait_until(lambda: bool(served.events("draining")))
    served.process.send_signal(signal.SIGTERM)
    code, _ = served.end()
    for thread in asking:
        thread.join(60)
    # 64 answers of 3,900 tokens take far longer than two signals.
    assert (code, refused) == (5, [503] * len(bodies))
    assert served.events("cut_off")[0]["requests"] == len(bodies)
    assert "error[E_DRAIN]" in served.lines[-2]


SLOW_TO_LOAD = """
import sys, time
import la_trt.cli.source as source
source.Source.open = lambda *_, **__: time.sleep(600)
from la_trt.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stop_does_not_wait_for_the_model(number: int, code: int) -> None:
    process = Process(program=["-c", SLOW_TO_LOAD])
    wait_until(lambda: bool(process.events("listening")))
    process.process.send_signal(number)
    assert process.end() == (code, "")
    assert not any("error[" in line for line in process.lines)


def test_without_descriptors_the_log_stays_readable_and_the_server_comes_back(
    served: Process,
) -> None:
    served.ready()
    assert served.post(chat(model="tiny", max_tokens=2)) == 200
    pid, port = served.process.pid, served.events("listening")[0]["port"]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + 4, before[1]))
    with contextlib.ExitStack() as connections:
        for _ in range(20):
            connections.enter_context(socket.create_connection(("127.0.0.1", port)))
        wait_until(lambda: bool(served.events("out_of_descriptors")))
    assert served.post(chat(model="tiny", max_tokens=2)) == 200
    served.process.send_signal(signal.SIGTERM)
    assert served.end()[0] == 0
    assert all(line.startswith("{") for line in served.lines)
    reports = served.events("out_of_descriptors")
    assert reports[0]["exception"] == "OSError" and len(reports) < 100, "not one for each try"
    assert "127.0.0.1" not in "".join(served.lines[1:])


def test_ctrl_c_is_130(served: Process) -> None:
    served.ready()
    served.process.send_signal(signal.SIGINT)
    assert served.end()[0] == 130


def test_a_taken_port_is_the_machines_fault(bundle: Path, served: Process) -> None:
    served.ready()
    port = str(served.events("listening")[0]["port"])
    other = Process("--engine", str(bundle), "--port", port)
    assert other.end()[0] == 5
    assert other.lines[0].startswith("la-trt: error[E_PORT]")


def test_a_damaged_bundle_ends_the_server_with_4(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    process = Process("--engine", str(tmp_path))
    assert process.end()[0] == 4
    assert any(line.startswith("la-trt: error[") for line in process.lines)
