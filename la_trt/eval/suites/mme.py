"""MME: two yes-no questions an image, 14 subtasks.

Fu et al., *MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models* (2023).
Read: a directory of `SUBTASK.txt` (lines `image, tab, question, tab, answer`), the release's
directories (`SUBTASK/NAME.txt` beside `NAME.jpg`, lines `question, tab, answer`), or rows with
`category`, `image`, `question`, `answer` and, to tell images apart, `question_id` or `image_path`.

A subtask's score is 100 times the share of questions answered right plus 100 times the share of
images with both right; perception and cognition are sums over their subtasks (at most 2000, 800).
The published script looks for yes or no among the first four characters; `parse.yes_no` also
understands a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from la_trt.errors import InputError
from la_trt.eval.images import file_below, image_of
from la_trt.eval.items import IMAGE, BadRow, DataSource, Item, Loaded, Score
from la_trt.eval.parse import final_answer, yes_no
from la_trt.eval.rows import SUFFIXES, RowError, checked, data_files, read_rows, text_of
from la_trt.eval.stats import Array, Metric, Sums

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
_SUBTASKS = {name.lower(): name for name in (*PERCEPTION, *COGNITION)}
_IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")
_Raw = tuple[str, Callable[[], tuple[str, str, str, str, Path | bytes]]]


class Mme:
    """Score of every subtask, and the totals of perception and cognition."""

    name = "mme"
    final = staticmethod(final_answer)

    def load(self, source: DataSource) -> Loaded:
        instruction = source.instruction or ""  # the questions themselves ask for yes or no
        bad: list[BadRow] = []
        units: dict[str, list[Item]] = {}
        where_of: dict[str, str] = {}
        files = _files(source.data)
        for where, make in _questions(source, files):
            try:
                subtask, image_id, question, answer, image = make()
                item = _item(subtask, image_id, question, answer, image, instruction)
                questions = units.setdefault(item.unit, [])
                if any(item.text == other.text for other in questions):
                    raise RowError("the same question about the same image stands twice")
            except RowError as problem:
                bad.append(BadRow(where=where, reason=str(problem)))
                continue
            where_of.setdefault(item.unit, where)
            questions.append(item)
        items: list[Item] = []
        for unit, pair in units.items():
            if len(pair) == 2:
                items += [_numbered(item, number) for number, item in enumerate(pair, 1)]
            else:
                reason = f"image {unit} has {len(pair)} questions, expected 2"
                bad.append(BadRow(where=where_of[unit], reason=reason))
        return checked(items, bad, self.name, files)

    def score(self, item: Item, answer: str) -> Score:
        said = yes_no(answer)
        right = said == item.expected
        return Score(said=said, correct=right, counts={"n": 1.0, "right": float(right)})

    def unit(self, scores: Sequence[Score]) -> tuple[bool, dict[str, float]]:
        both = all(score.correct for score in scores)
        totals = {name: sum(score.counts[name] for score in scores) for name in ("n", "right")}
        return both, {**totals, "images": 1.0, "both": float(both)}

    def metrics(self, categories: Sequence[str]) -> list[Metric]:
        found = [Metric(name="total", of=_total(categories), categories=tuple(categories))]
        for name, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
            there = tuple(s for s in subtasks if s in categories)
            if there:
                found.append(Metric(name=name, of=_total(there), categories=there))
        for subtask in (*PERCEPTION, *COGNITION):
            if subtask in categories:
                found.append(Metric(name=subtask, of=_total((subtask,)), categories=(subtask,)))
        return found


def _total(subtasks: Sequence[str]) -> Callable[[Sums], Array]:
    """accuracy + accuracy+, in shares, summed over subtasks."""

    def total(sums: Sums) -> Array:
        scores = [
            sums.ratio("right", "n", (subtask,)) + sums.ratio("both", "images", (subtask,))
            for subtask in subtasks
        ]
        return sum(scores[1:], scores[0])

    return total


def _item(
    subtask: str, image_id: str, question: str, answer: str, image: Path | bytes, instruction: str
) -> Item:
    if subtask.lower() not in _SUBTASKS:
        raise RowError(f"subtask {subtask[:40]!r} is none of MME's")
    if answer.lower() not in ("yes", "no"):
        raise RowError(f"answer {answer[:40]!r}, expected Yes or No")
    if not question:
        raise RowError("no question")
    unit = f"{_SUBTASKS[subtask.lower()]}/{image_id}"
    return Item(
        id=unit,
        unit=unit,
        category=_SUBTASKS[subtask.lower()],
        parts=(IMAGE, f"{question}\n{instruction}".strip()),
        images=(image,),
        expected=answer.lower(),
    )


def _numbered(item: Item, number: int) -> Item:
    from dataclasses import replace

    return replace(item, id=f"{item.unit}#{number}")


def _files(data: Path | None) -> list[Path]:
    if data is not None and data.is_dir():
        flat = sorted(p for p in data.glob("*.txt") if p.stem.lower() in _SUBTASKS)
        nested = sorted(
            p for d in data.iterdir() if d.name.lower() in _SUBTASKS for p in d.rglob("*.txt")
        )
        if flat or nested:
            return [*flat, *nested]
        return data_files(data, "mme")
    if data is not None and data.suffix == ".txt" and data.is_file():
        return [data]
    return data_files(data, "mme", (*SUFFIXES, ".txt"))


def _questions(source: DataSource, files: Sequence[Path]) -> Iterator[_Raw]:
    for path in files:
        if path.suffix == ".txt":
            yield from _lines(path, source)
            continue
        directory = source.images or path.parent
        for where, row in read_rows(path):
            yield where, _row_maker(row, directory)


def _row_maker(row: Mapping[str, Any] | RowError, directory: Path) -> Callable[[], Any]:
    def make() -> tuple[str, str, str, str, Path | bytes]:
        if isinstance(row, RowError):
            raise row
        image_id = text_of(row, "image_path", "question_id")
        if not image_id and isinstance(row.get("image"), str) and len(row["image"]) < 256:
            image_id = row["image"]
        if not image_id:
            raise RowError("no question_id or image_path")
        image = image_of(row.get("image") or row.get("image_path"), directory)
        fields = (text_of(row, name) for name in ("question", "answer"))
        question, answer = fields
        return text_of(row, "category"), image_id, question, answer, image

    return make


def _lines(path: Path, source: DataSource) -> Iterator[_Raw]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read as text ({type(error).__name__})\ndownload it again",
            name="E_DATASET",
        ) from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path.name} row {number}", _line_maker(path, line, source)


def _line_maker(path: Path, line: str, source: DataSource) -> Callable[[], Any]:
    def make() -> tuple[str, str, str, str, Path | bytes]:
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) == 3:
            name, question, answer = cells
            subtask = path.stem
            root = source.images or path.parent
            inner = next((d for d in (f"{subtask}/images", subtask) if isfile(root / d / name)), "")
            return subtask, name, question, answer, file_below(root, f"{inner}/{name}".lstrip("/"))
        if len(cells) == 2:
            subtask = next((p.name for p in path.parents if p.name.lower() in _SUBTASKS), "")
            image = _image_of(path, subtask, source.images)
            return subtask, path.stem, cells[0], cells[1], image
        raise RowError(f"{len(cells)} cells, expected image, question and answer")

    return make


def _image_of(path: Path, subtask: str, images: Path | None) -> Path:
    """The image of a question file, by its stem.

    Below `images`, by subtask or not; without, beside the file or in `images` beside its directory.
    """
    places = [path.parent, path.parent.parent / "images"]
    if images is not None:
        places = [images / subtask, images / subtask / "images", images]
    for directory in places:
        for suffix in _IMAGE_SUFFIXES:
            found = directory / f"{path.stem}{suffix}"
            if found.is_file():
                return found
    raise RowError(f"no image {path.stem}.jpg or .png in {' or '.join(map(str, places[:2]))}")
