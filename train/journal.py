"""A file that grows by whole entries, so that a run killed at any moment goes on where it was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from la_trt.errors import MachineError, UsageError
from la_trt.files.atomic import is_at, try_lock
from la_trt.files.json_lines import append_durably, dump_line


class Journal:
    """Entries of a run, one JSON object a line, each durable when `append` returns.

    `header` says what the run is: a journal with another one is refused (UsageError
    E_OTHER_RUN), as is one that another process holds (MachineError E_LOCKED). A last line that a
    killed process left unfinished is cut off. `entries` are those found, then those appended.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock()
            self.entries = self._recover(json.loads(json.dumps(header)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, entry: Mapping[str, Any]) -> None:
        """Nothing; the entry is on the disk."""
        line = dump_line(entry)
        append_durably(self._file.fileno(), self.path, line)
        self.entries.append(json.loads(line))

    def remove(self) -> None:
        """Nothing; the file is gone, its lock still held until the context ends."""
        self.path.unlink()

    def _lock(self) -> None:
        descriptor = self._file.fileno()
        if not (try_lock(descriptor) and is_at(descriptor, self.path)):
            raise MachineError(
                f"{self.path}: another process is writing the same output\n"
                "wait for it, or choose another output",
                name="E_LOCKED",
            )

    def _recover(self, header: Mapping[str, Any]) -> list[dict[str, Any]]:
        self._file.seek(0)
        entries: list[dict[str, Any]] = []
        good = 0
        for line in self._file:
            value = None
            if line.endswith(b"\n"):
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
            if not isinstance(value, dict):
                break
            entries.append(value)
            good += len(line)
        self._file.truncate(good)
        if not entries:
            self.entries = []
            self.append(header)
        elif entries[0] != header:
            raise UsageError(
                f"{self.path}: an unfinished run with other settings: "
                f"{_difference(entries[0], header)}\n"
                "run it with those, remove the file, or choose another output",
                name="E_OTHER_RUN",
            )
        return entries[1:]


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {str(old.get(key))[:60]}" for key in keys[:3])
