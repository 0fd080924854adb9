"""Examples of a JSONL file: shuffled by position, resumable, a bad row skipped and counted.

No row is kept in memory: the file is read through once for the offsets of its lines, and each
row when its turn comes.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from la_trt.errors import InputError, UsageError
from la_trt.processor.tokenizer import Vocabulary
from la_trt.tags import ALL_TAGS
from train.rows import (
    Example,
    LookWorldRef,
    RowError,
    RowLimits,
    lookworld_example,
    read_row,
)

__all__ = [
    "Example",
    "ExampleReader",
    "LookWorldRef",
    "RowError",
    "RowLimits",
    "by_reason",
    "encode_response",
    "lookworld_example",
    "read_examples",
    "skipped_rows",
    "to_row",
]

_PIECE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_TAGS = re.compile("(" + "|".join(map(re.escape, ALL_TAGS)) + ")")
_REQUIRED = ("response", "answer")


class ExampleReader(Iterator[Example]):
    """The usable examples of a file, one after the other.

    `position` counts the rows passed so far, the skipped ones too: a reader made with
    `start=position` goes on with the next. `skipped` counts bad rows by reason since this reader
    was made. `num_rows` are the file's, `fingerprint` its sha256: a position means something only
    for the same file and seed.
    """

    def __init__(
        self,
        path: Path,
        images_dir: Path | None = None,
        *,
        seed: int | None = None,
        start: int = 0,
        epochs: int | None = 1,
        require: Collection[str] = (),
        limits: RowLimits | None = None,
    ) -> None:
        if start < 0 or (epochs is not None and epochs < 1) or set(require) - set(_REQUIRED):
            raise UsageError(
                f"examples: expected start >= 0, epochs >= 1 and require of "
                f"{', '.join(_REQUIRED)}, got {start}, {epochs} and {sorted(require)}"
            )
        self.path = path
        self._images_dirs = [path.parent] if images_dir is None else [images_dir, path.parent]
        self.seed, self.epochs, self.position = seed, epochs, start
        self.skipped: Counter[str] = Counter()
        self._require = tuple(require)
        self._limits = limits or RowLimits()
        self._offsets, self.fingerprint = _index(path)
        self._order: tuple[int, Any] = (-1, None)
        self._last_good, self._last_error = start, ""

    @property
    def num_rows(self) -> int:
        """Rows of the file, blank lines apart."""
        return len(self._offsets)

    def __next__(self) -> Example:
        while self.epochs is None or self.position < self.epochs * self.num_rows:
            if self.epochs is None and self.position - self._last_good >= 2 * self.num_rows:
                raise InputError(
                    f"{self.path}: none of {self.num_rows} rows can be used "
                    f"({by_reason(self.skipped)}), such as: {self._last_error}\n"
                    "give rows as docs/data.md says",
                    name="E_DATA",
                )
            epoch, at = divmod(self.position, self.num_rows)
            self.position += 1
            try:
                example = self._read(self._row(epoch, at))
            except RowError as error:
                self.skipped[error.reason] += 1
                self._last_error = " ".join(str(error).splitlines()[:1])
                continue
            self._last_good = self.position
            return example
        raise StopIteration

    def refuse_empty(self) -> None:
        """Raise InputError E_DATA for a file without rows, of which nothing can be learnt."""
        if not self.num_rows:
            raise InputError(f"{self.path}: no rows\ngive a JSONL file with rows", name="E_DATA")

    def _row(self, epoch: int, at: int) -> int:
        if self.seed is None:
            return at
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._order = (epoch, rng.permutation(self.num_rows))
        return int(self._order[1][at])

    def _read(self, row: int) -> Example:
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[row]))
            line = file.readline(self._limits.max_line_bytes + 1)
        example = read_row(
            line, images_dirs=self._images_dirs, limits=self._limits, default_id=f"row-{row}"
        )
        for name in self._require:
            if not getattr(example, name):
                raise RowError(f"no {name}", f"row {row} has none")
        return example


def read_examples(
    path: Path | str, images_dir: Path | str | None = None, **options: Any
) -> ExampleReader:
    """The examples of a JSONL file; `options` as of `ExampleReader`.

    Images are looked for under `images_dir`, then beside the file. `seed` shuffles the rows,
    each epoch in its own order; without it they come as they stand. `epochs` None goes on for
    ever. `require`: `response` or `answer`, where rows without one are of no use. Row forms:
    `train.rows.read_row`. Raises InputError E_DATA when the file itself cannot be read.
    """
    return ExampleReader(Path(path), None if images_dir is None else Path(images_dir), **options)


def by_reason(skipped: Counter[str]) -> str:
    """How many rows were left out for what, '' for none."""
    return ", ".join(f"{reason} {num}" for reason, num in sorted(skipped.items()))


def skipped_rows(skipped: Counter[str]) -> str:
    """One line that tells `skipped`, '' for none."""
    return f"rows skipped since this start: {by_reason(skipped)}" if skipped else ""


def encode_response(vocabulary: Vocabulary, text: str) -> list[int]:
    """Ids of a response from a file: the ten tags become their tokens, nothing else does."""
    controls = vocabulary.controls
    ids: list[int] = []
    for piece in _TAGS.split(text):
        ids += [controls[piece]] if piece in controls else vocabulary.encode(piece)
    return ids


def to_row(example: Example, directory: Path, response: str | None = None) -> dict[str, Any]:
    """The row that `read_examples` reads back, for a file in `directory`.

    Images are named relative to it; a LookWorld sample is named, not stored.
    """
    row: dict[str, Any] = {"id": example.id}
    if example.lookworld is not None:
        row["lookworld"] = example.lookworld.to_json()
    else:
        names = []
        for image in example.images:
            assert isinstance(image, Path), "a picture without a file cannot be named in a row"
            names.append(os.path.relpath(image, directory))
        row["image"] = names[0] if len(names) == 1 else names
    row["question"] = example.question
    if example.answer is not None:
        row["answer"] = example.answer
    said = example.response if response is None else response
    return row if said is None else row | {"response": said}


def _index(path: Path) -> tuple[np.ndarray[Any, np.dtype[np.int64]], str]:
    """The offsets of the lines that are not blank, and the file's sha256."""
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "no such file"
        raise InputError(f"{path}: {what}\ngive a JSONL file", name="E_DATA")
    digest = hashlib.sha256()
    offsets = array("q")
    at, fresh = 0, True
    try:
        with path.open("rb") as file:
            while piece := file.readline(_PIECE_BYTES):
                if at == 0 and piece.startswith(b"version https://git-lfs"):
                    raise InputError(
                        f"{path}: a git-LFS pointer\nrun `git lfs pull`", name="E_DATA"
                    )
                digest.update(piece)
                mark = len(_BOM) if at == 0 and piece.startswith(_BOM) else 0
                if fresh and piece[mark:].strip():
                    offsets.append(at + mark)
                fresh = piece.endswith(b"\n")
                at += len(piece)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}\ngive a readable file", name="E_DATA") from None
    return np.array(offsets, np.int64), digest.hexdigest()
