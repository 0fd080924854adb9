"""The rows of a batch: JSON lines that each hold one question.

A row is an object with `prompt` (text, needed), `images` (names of files below the directory of
images, data URLs or base64), `id`, `system`, and what replaces the batch's own settings for this
row: `max_tokens`, `temperature`, `seed`, `policy`. Other fields are refused, so that a misspelt
one is not overlooked.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from la_trt.errors import InputError
from la_trt.eval.rows import MAX_ROW_BYTES, RowError
from la_trt.files.strict_json import parse_json, show
from la_trt.reattention.policy import PRESETS

MAX_ID = 512  # characters
_LFS = b"version https://git-lfs"
_BLANK = b"\xef\xbb\xbf \t\r\n"
_TODO = "give JSON lines, one object with a prompt in each"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """One question. `number`: its line in the file, from 1. None: as the batch has it."""

    number: int
    id: str
    prompt: str
    images: tuple[str, ...] = ()
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    policy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """A file of rows that has been read once from end to end.

    `spans` (N, 3) int64: line number, offset and size in bytes of every row that is good.
    `bad`: line number -> (its id, `line-N` where it has none of its own; what is wrong).
    `sha256`: of the whole file. `policies`: those that rows name.
    """

    path: Path
    sha256: str
    spans: NDArray[np.int64]
    policies: frozenset[str] = frozenset()
    bad: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Good and bad ones."""
        return len(self.spans) + len(self.bad)

    def numbers(self) -> list[int]:
        """The line numbers of all rows, in order."""
        return sorted([*(int(n) for n in self.spans[:, 0]), *self.bad])


def scan(path: Path) -> BatchInput:
    """The rows of a file. Raises InputError E_DATASET where not one of them is good.

    A row that is no question, or has the id of an earlier one, is a bad row: the others are
    answered all the same.
    """
    digest, found, bad = hashlib.sha256(), array("q"), dict[int, tuple[str, str]]()
    seen: dict[bytes, int] = {}
    policies: set[str] = set()
    with _open(path) as file:
        for number, offset, line in _lines(file, digest.update):
            name = by_line = f"line-{number}"
            try:
                value = _object(line)
                name = value["id"] if _is_id(value.get("id")) else by_line
                row = _row(value, number)
                key = hashlib.blake2b(row.id.encode("utf-8", "replace"), digest_size=16).digest()
                if key in seen:
                    name = by_line
                    raise RowError(f"id {show(row.id)} stands in line {seen[key]} already")
            except RowError as problem:
                bad[number] = (name, str(problem))
                continue
            seen[key] = number
            if row.policy is not None:
                policies.add(row.policy)
            found.extend((number, offset, len(line)))
    if not found:
        number, (_, reason) = next(iter(bad.items()), (0, ("", "")))
        what = f"line {number}: {reason} ({len(bad)} rows, none good)" if bad else "no rows in it"
        raise InputError(f"{path}: {what}\n{_TODO}", name="E_DATASET")
    spans = np.array(found, np.int64).reshape(-1, 3)
    return BatchInput(
        path=path,
        sha256=digest.hexdigest(),
        spans=spans,
        policies=frozenset(policies),
        bad=bad,
    )


def read(path: Path, spans: Sequence[Sequence[int]]) -> list[BatchRow]:
    """The rows at these places of a scanned file. Raises InputError where it has changed since."""
    rows = []
    with _open(path) as file:
        for number, offset, size in spans:
            file.seek(offset)
            try:
                rows.append(_row(_object(file.read(size)), int(number)))
            except RowError:
                raise InputError(
                    f"{path} line {number}: changed while it was read\nstart again",
                    name="E_DATASET",
                ) from None
    return rows


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path}: not a regular file, and it is read more than once\nsave it first",
            name="E_DATASET",
        )
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or 'cannot be read'}\nname the file with --input",
            name="E_DATASET",
        ) from None


def _lines(file: BinaryIO, update: Callable[[bytes], object]) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset, bytes) of the lines that are not blank."""
    offset = number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if number == 1 and line.startswith(_LFS):
            raise InputError(
                f"{file.name}: a git-LFS pointer, not the data\nfetch it with git lfs pull",
                name="E_DATASET",
            )
        if len(line) > MAX_ROW_BYTES:
            raise InputError(
                f"{file.name} line {number}: more than {MAX_ROW_BYTES} bytes\nsplit the row",
                name="E_DATASET",
            )
        update(line)
        if line.strip(_BLANK):
            yield number, offset, line
        offset += len(line)


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises RowError."""
    try:
        value = parse_json(
            line.removeprefix(b"\xef\xbb\xbf"),
            where="row",
            todo="",
            error=InputError,
            max_bytes=MAX_ROW_BYTES,
        )
    except InputError as error:
        raise RowError(str(error).strip().removeprefix("row: ")) from None
    if not isinstance(value, dict):
        raise RowError(f"expected an object, got {type(value).__name__}")
    return value


def _row(value: Mapping[str, Any], number: int) -> BatchRow:
    """The question of an object. Raises RowError."""
    return BatchRow(number=number, **{"id": f"line-{number}", **_fields(value)})


def _fields(value: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [name for name in value if name not in _CHECKS]
    if unknown:
        raise RowError(f"unknown field {show(unknown[0])}, known are {', '.join(_CHECKS)}")
    if "prompt" not in value:
        raise RowError("no prompt")
    found = {}
    for name, given in value.items():
        expected, good = _CHECKS[name]
        if not good(given):
            raise RowError(f"{name}: expected {expected}, got {show(given)}")
        found[name] = tuple(given) if isinstance(given, list) else given
    return found


def _is_id(value: Any) -> bool:
    good = isinstance(value, str) and 0 < len(value) <= MAX_ID
    return good and not any("\ud800" <= c <= "\udfff" for c in value)  # UTF-8 has no surrogates


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63


def _number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= sys.float_info.max


_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": (f"text of 1 to {MAX_ID} characters", _is_id),
    "prompt": ("text", _text),
    "images": (
        "a list of file names or data URLs",
        lambda v: isinstance(v, list) and all(_text(i) for i in v),
    ),
    "system": ("text", lambda v: isinstance(v, str)),
    "max_tokens": ("a whole number of at least 1", lambda v: _whole(v, 1)),
    "temperature": ("a number of at least 0", _number),
    "seed": ("a whole number of at least 0", lambda v: _whole(v, 0)),
    "policy": (f"one of {', '.join(PRESETS)}", lambda v: v in PRESETS),
}
