"""What a suite is: questions to ask, a rule that scores an answer, and metrics of the scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from la_trt.eval.stats import Metric
from la_trt.processor.image import ImageSource

IMAGE = "<image>"  # in a question's parts: the next of its images stands here
Picture = ImageSource | Callable[[], ImageSource]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question to ask.

    `parts`: texts and IMAGE marks in order. `unit`: what counts as one observation; questions of
    one unit (the pair of an MME image, the rotations of an MMBench question) are scored together.
    `category`: a unit is resampled among those of its category. `stamp`: tells images that are
    drawn on demand apart. `detail`: what the scoring rule needs besides `expected`.
    """

    id: str
    unit: str
    category: str
    parts: tuple[str, ...]
    images: tuple[Picture, ...]
    expected: str
    stamp: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The question without its images."""
        return "".join(part for part in self.parts if part != IMAGE).strip()

    @property
    def sha256(self) -> str:
        """Tells this question from any other: ids, text, right answer and encoded images.

        A file counts with its content, whatever its name, and is read once unless it changes.
        """
        digest = hashlib.sha256()
        said = [self.id, self.unit, self.category, *self.parts, self.expected, self.stamp]
        digest.update(json.dumps(said).encode())
        for image in self.images:
            if isinstance(image, Path):
                digest.update(_file_sha256(image))
            elif isinstance(image, (bytes, bytearray, memoryview)):
                digest.update(hashlib.sha256(image).digest())
        return digest.hexdigest()

    def messages(self) -> list[dict[str, Any]]:
        """The user's message, images loaded where they are drawn on demand."""
        rest = iter(self.images)
        parts: list[dict[str, Any]] = []
        for part in self.parts:
            if part == IMAGE:
                image = next(rest)
                parts.append({"type": "image", "image": image() if callable(image) else image})
            elif part:
                parts.append({"type": "text", "text": part})
        return [{"role": "user", "content": parts}]


def _file_sha256(path: Path) -> bytes:
    """Of the content; b'' if the file cannot be read, which asking the question reports."""
    try:
        status = path.stat()
        return _content_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:
        return b""


@lru_cache(maxsize=1 << 16)
def _content_sha256(path: Path, *version: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One answer scored: what was understood, whether it is right, and counts to add up."""

    said: str
    correct: bool
    counts: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be asked: `where` names the file and the row's number, from 1."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The questions of a suite in order, and the rows that are none."""

    items: list[Item]
    bad_rows: list[BadRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Where the questions come from; suites take what they need.

    `images`: the directory that image names are relative to; by default that of `data`.
    `instruction`: stands after every question in place of the suite's own.
    """

    data: Path | None = None
    images: Path | None = None
    instruction: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Suite(Protocol):
    """A benchmark: reader, scoring rule, metrics."""

    name: str

    def final(self, text: str) -> str:
        """The part of an answer that is scored."""
        ...

    def load(self, source: DataSource) -> Loaded:
        """The questions. Raises InputError where the file as a whole is wrong."""
        ...

    def score(self, item: Item, answer: str) -> Score:
        """The score of the final part of an answer. Pure."""
        ...

    def unit(self, scores: Sequence[Score]) -> tuple[bool, dict[str, float]]:
        """Whether a unit is right as a whole, and its counts."""
        ...

    def metrics(self, categories: Sequence[str]) -> list[Metric]:
        """The metrics over units of these categories, the headline first."""
        ...


def single(scores: Sequence[Score]) -> tuple[bool, dict[str, float]]:
    """The unit of exactly one question."""
    (score,) = scores
    return score.correct, dict(score.counts)


def take_evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The questions of the first `limit` units, taken in turn from every category, in order."""
    if limit is None:
        return list(items)
    queues: dict[str, list[str]] = {}
    for item in items:
        units = queues.setdefault(item.category, [])
        if not units or units[-1] != item.unit:
            units.append(item.unit)
    chosen: set[tuple[str, str]] = set()
    for depth in range(max(map(len, queues.values()), default=0)):
        for category, units in queues.items():
            if len(chosen) < limit and depth < len(units):
                chosen.add((category, units[depth]))
    return [item for item in items if (item.category, item.unit) in chosen]
