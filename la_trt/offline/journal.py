"""What a batch has answered so far, and the output file once it has answered everything.

Beside `OUT.jsonl` stands `OUT.jsonl.partial` while the batch runs: a line with the settings, then
a line for each record, durable when `append` returns. When every row has its record, `publish`
writes them in the order of the rows to `OUT.jsonl`, whole or not at all, and removes the journal.
A killed batch goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from la_trt.errors import InputError, MachineError, UsageError
from la_trt.files.atomic import atomic_file, is_at, try_lock
from la_trt.files.json_lines import AFRESH, append_durably, check_same, dump_line

SUFFIX = ".partial"


class Journal:
    """An open journal. `records`: line number of a row -> place of its record in the journal."""

    def __init__(self, output: Path, descriptor: int) -> None:
        self.output = output
        self.records: dict[int, tuple[int, int]] = {}
        self.repaired_bytes = 0
        self.num_refused = 0
        self.num_numerical_errors = 0
        self._descriptor = descriptor

    def append(self, records: Iterable[Mapping[str, Any]]) -> int:
        """How many of these rows had no record yet; theirs are on disk when this returns."""
        end, data = os.fstat(self._descriptor).st_size, b""
        num_new = 0
        for record in records:
            line = dump_line(record)
            if self._count(record, end + len(data), len(line)):
                data += line
                num_new += 1
        self._save(data)
        return num_new

    def publish(self, numbers: Iterable[int]) -> None:
        """Write the records of these rows, in this order, to the output; the journal is gone."""
        with atomic_file(self.output) as file:
            for number in numbers:
                offset, size = self.records[number]
                file.write(os.pread(self._descriptor, size, offset))
        os.unlink(file_name(self.output))

    def _count(self, record: Mapping[str, Any], offset: int, size: int) -> bool:
        """Whether this row's record is new."""
        number = int(record["line"])
        if number in self.records:
            return False
        self.records[number] = (offset, size)
        self.num_refused += "error" in record
        self.num_numerical_errors += record.get("finish_reason") == "numerical_error"
        return True

    def read(self, settings: Mapping[str, Any]) -> None:
        """Take over the records of an earlier run; raises UsageError where it was another batch."""
        offset = 0
        before: dict[str, Any] = {}
        size = os.fstat(self._descriptor).st_size
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                record = _record(line)
                if record is None:
                    if offset + len(line) < size:
                        raise InputError(
                            f"{file_name(self.output)} line {number}: not a record\n{AFRESH}",
                            name="E_RUN",
                        )
                    break
                if number == 1:
                    before = record
                else:
                    if number == 2:
                        check_same(self.output, before.get("asked"), settings["asked"])
                    self._count(record, offset, len(line))
                offset += len(line)
        if offset < size:
            self.repaired_bytes = size - offset
            os.ftruncate(self._descriptor, offset)
        if not self.records:  # a run that ended before its first answer binds nobody
            os.ftruncate(self._descriptor, 0)
            self._save(dump_line(settings))

    def _save(self, data: bytes) -> None:
        append_durably(self._descriptor, file_name(self.output), data)


@contextlib.contextmanager
def open_journal(output: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[Journal]:
    """The journal of an output file, locked against other processes.

    Raises MachineError E_OUTPUT_EXISTS where the output is finished already (`resume` False
    replaces it), E_LOCKED where another process writes it; UsageError E_RESUME where an
    unfinished one answers other rows or has other settings (`resume` False deletes it).
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open_locked(output, resume=resume)
    try:
        if not resume:
            os.ftruncate(descriptor, 0)
        journal = Journal(output, descriptor)
        journal.read(settings)
        yield journal
    finally:
        os.close(descriptor)


def _open_locked(output: Path, *, resume: bool) -> int:
    """The journal's descriptor. A batch that ends meanwhile unlinks the file it was opened on."""
    path = file_name(output)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        check_output(output, resume=resume)
        descriptor = os.open(path, flags, 0o644)
        if not try_lock(descriptor):
            os.close(descriptor)
            raise MachineError(
                f"{output}: another batch is writing it\nwait, or choose another --output",
                name="E_LOCKED",
            )
        if is_at(descriptor, path):
            return descriptor
        os.close(descriptor)


def check_output(output: Path, *, resume: bool, source: Path | None = None) -> None:
    """Nothing; called before minutes of loading, so that a slip of the pen costs none.

    `source`: the file that is read, which is never written. Raises MachineError, UsageError.
    """
    if source is not None and output.exists() and source.exists() and output.samefile(source):
        raise UsageError(f"{output}: is the file of questions\nchoose another --output")
    if output.is_dir():
        raise MachineError(
            f"{output}: is a directory\ngive the name of a file", name="E_OUTPUT_EXISTS"
        )
    if resume and output.exists() and not file_name(output).exists():
        raise MachineError(
            f"{output}: exists already\nchoose another --output, or replace it with --no-resume",
            name="E_OUTPUT_EXISTS",
        )
    if not resume and not _is_answers(output):
        raise MachineError(
            f"{output}: exists, and is no file of answers\nchoose another --output",
            name="E_OUTPUT_EXISTS",
        )


def _is_answers(path: Path) -> bool:
    """Whether nothing is lost by replacing it: it is not there, empty, or such a file."""
    try:
        with path.open("rb") as file:
            first = file.readline(1 << 24)
    except FileNotFoundError:
        return True
    try:
        record = json.loads(first) if first else {"line": 0}
    except ValueError:
        return False
    return isinstance(record, dict) and "line" in record


def file_name(output: Path) -> Path:
    """The journal's path."""
    return output.with_name(output.name + SUFFIX)


def _record(line: bytes) -> dict[str, Any] | None:
    """The object of a whole line, None for a torn one."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    good = isinstance(value, dict) and ("asked" in value or isinstance(value.get("line"), int))
    return value if good else None
