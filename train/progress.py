"""What a run reports: a bar on the terminal, one JSON object a line in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from la_trt.files.atomic import atomic_file, write_errors


class RunLog:
    """A context that shows progress and appends metrics to `directory/NAME.jsonl`.

    The file's lines of steps after `done`, which a killed run wrote and will again, are dropped.
    """

    def __init__(self, directory: Path, name: str, *, total: int, done: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / f"{name}.jsonl"
        _forget_after(self._path, done)
        self._file = self._path.open("a", encoding="utf-8")
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=total, completed=done, note="")
        self._started = time.monotonic()
        self._name = name

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._file.close()

    def advance(self, step: int, note: str = "") -> None:
        """Nothing; moves the bar to `step`."""
        self._bar.update(self._task, completed=step, note=note)

    def write(self, values: Mapping[str, object]) -> None:
        """Nothing; one line in the file and, where there is no bar, on stderr."""
        seconds = round(time.monotonic() - self._started, 1)
        line = json.dumps({"seconds": seconds, **values})
        with write_errors(self._path):
            self._file.write(line + "\n")
            self._file.flush()
        if not self._console.is_terminal:
            self._console.print(f"{self._name} {line}", highlight=False, soft_wrap=True)


def _forget_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # cut off when the run was killed
            continue
        if values.get("step", 0) <= step:
            kept.append(line + "\n")
    with atomic_file(path) as file:
        file.write("".join(kept).encode())
