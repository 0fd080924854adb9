"""The output directory of one evaluation: settings, answers as they come, reports at the end.

`run.json` (what was asked, and how), `answers.jsonl` (one line an answer, appended and made
durable as each is finished), `report.json` and `report.md` (replaced whole). A killed run goes on
where it was: what has been answered is not asked again, a torn last line is cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from la_trt.errors import InputError, MachineError
from la_trt.files.atomic import atomic_file, try_lock
from la_trt.files.json_lines import AFRESH, append_durably, check_same, dump_line
from la_trt.files.strict_json import parse_json

RUN, ANSWERS, REPORT, TABLE = "run.json", "answers.jsonl", "report.json", "report.md"
_MAX_BYTES = 4 << 30


class Run:
    """An open output directory. `answers`: the records so far, by question id."""

    def __init__(self, path: Path, answers: dict[str, dict[str, Any]], repaired: int) -> None:
        self.path = path
        self.answers = answers
        self.repaired_bytes = repaired
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path / ANSWERS, flags, 0o644)

    def append(self, record: Mapping[str, Any]) -> None:
        """Nothing; the record is on disk when this returns."""
        line = dump_line(record, errors="backslashreplace")  # a lone surrogate as JSON escapes it
        append_durably(self._descriptor, self.path / ANSWERS, line)
        self.answers[str(record["id"])] = dict(record)

    def write_report(self, report: Mapping[str, Any], table: str) -> None:
        """Nothing; both reports replaced, each whole."""
        write_json(self.path / REPORT, report)
        with atomic_file(self.path / TABLE) as file:
            file.write(table.encode("utf-8", "replace"))

    def close(self) -> None:
        """Nothing; no more answers after this."""
        os.close(self._descriptor)


@contextlib.contextmanager
def open_run(path: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[Run]:
    """The run in a directory, made if it is not there, locked against other processes.

    `settings["asked"]` must be what an earlier run there was asked (UsageError E_RESUME), unless
    `resume` is False: then earlier answers are deleted. A directory that holds other things is
    refused (MachineError E_OUTPUT_EXISTS); so is one in use (E_LOCKED).
    """
    check_output(path)
    path.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        there = check_output(path)
        if RUN in there and resume:
            check_same(path, _json(path / RUN).get("asked"), settings["asked"])
        elif RUN in there:
            for name in (REPORT, TABLE, ANSWERS):
                (path / name).unlink(missing_ok=True)
        write_json(path / RUN, settings)
        run = Run(path, *_read_answers(path / ANSWERS))
        try:
            yield run
        finally:
            run.close()


def check_output(path: Path) -> list[str]:
    """The names in an output directory, none if it is not there yet.

    Raises MachineError E_OUTPUT_EXISTS where it holds other things than an evaluation: called
    before minutes of loading, so that a slip of the pen costs none.
    """
    if not path.exists():
        return []
    if not path.is_dir():
        raise MachineError(
            f"{path}: exists and is no directory\nchoose another --output", name="E_OUTPUT_EXISTS"
        )
    there = [name for name in os.listdir(path) if not name.startswith(".")]
    if there and RUN not in there:
        raise MachineError(
            f"{path}: holds {min(there)!r} and no {RUN}, so it is no evaluation's\n"
            "choose another --output",
            name="E_OUTPUT_EXISTS",
        )
    return there


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Nothing; the file replaced whole."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "replace"))


def read_report(path: Path) -> dict[str, Any]:
    """The report of a finished run. Raises InputError E_RUN."""
    file = path / REPORT
    if not file.is_file():
        what = "not finished" if (path / RUN).is_file() else "no evaluation"
        raise InputError(
            f"{path}: {what}, it has no {REPORT}\nname the --output of a finished la-trt eval",
            name="E_RUN",
        )
    report = _json(file)
    if not isinstance(report.get("units"), list) or not isinstance(report.get("suite"), str):
        raise InputError(f"{file}: not a report of la-trt eval\nrun it again", name="E_RUN")
    return report


def _json(path: Path) -> dict[str, Any]:
    value = parse_json(
        path.read_bytes(),
        where=str(path),
        todo=AFRESH,
        error=InputError,
        name="E_RUN",
        max_bytes=_MAX_BYTES,
    )
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object\n{AFRESH}", name="E_RUN")
    return value


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not try_lock(descriptor):
            raise MachineError(
                f"{path}: another evaluation is writing it\nwait, or choose another --output",
                name="E_LOCKED",
            )
        yield
    finally:
        os.close(descriptor)


def _read_answers(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The records by id, and the bytes of a torn last line that were cut off."""
    if not path.exists():
        return {}, 0
    data = path.read_bytes()
    good = data.rfind(b"\n") + 1
    lines = data[:good].splitlines()
    answers: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None:
            if number < len(lines):
                raise InputError(f"{path} line {number}: not an answer\n{AFRESH}", name="E_RUN")
            good -= len(line) + 1
        else:
            answers[record["id"]] = record
    if good < len(data):
        with path.open("r+b") as file:
            file.truncate(good)
            os.fsync(file.fileno())
    return answers, len(data) - good


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    texts = ("id", "text", "sha256")
    if not isinstance(value, dict) or not all(isinstance(value.get(t), str) for t in texts):
        return None
    return value
