"""An engine in a process of its own, asked line by line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from typing import IO, Any, Self

from benchmarks.peer_engines import ROOT, NotAvailable, ending


class WorkerEnded(NotAvailable):
    """A worker ended before it answered; the message has its exit code and last words."""


class Worker:
    """A child process that answers JSON lines, its first unasked: `hello`.

    Its stderr is passed on. Raises WorkerEnded when made or asked.
    """

    def __init__(self, *command: str) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._said = b""
        self._listener = threading.Thread(
            target=self._listen, args=(self._process.stderr,), daemon=True
        )
        self._listener.start()
        self.hello: dict[str, Any] = {}
        self.hello = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def close(self) -> None:
        """End the process; nothing where it has ended."""
        with contextlib.suppress(BrokenPipeError):  # of a request that it never read
            self._requests.close()
        self._process.wait()
        self._answers.close()

    def _read(self) -> dict[str, Any]:
        for line in self._answers:
            if line.startswith("{") and line.endswith("\n"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise self._ended()

    def _ended(self) -> WorkerEnded:
        self.close()
        self._listener.join(1)  # a child of its own may hold the pipe
        what = "running" if self.hello else "starting"
        said = self._said.decode(errors="replace")
        return WorkerEnded(f"{what} it {ending(self._process.returncode, said)}")

    def _listen(self, stderr: IO[str]) -> None:
        with stderr:
            while piece := os.read(stderr.fileno(), 4096):
                os.write(2, piece)
                self._said = (self._said + piece)[-4096:]
