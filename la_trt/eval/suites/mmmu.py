"""MMMU: college questions of 30 subjects, multiple choice and open.

Yue et al., *MMMU: A Massive Multi-discipline Multimodal Understanding and Reasoning Benchmark*
(2023). Rows: `id`, `question` with `<image 1>` marks, `options` (a list, or one spelt as text),
`image_1` .. `image_7`, `answer`, `question_type` (`multiple-choice` or `open`), `subfield`.

An open answer is right if it holds one of the right texts, or a number that equals one to two
decimals (`open_matches`). A multiple-choice answer without a clear letter is wrong; the published
script draws one at random in its place, which adds chance to a score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from la_trt.eval.images import image_of
from la_trt.eval.items import IMAGE, DataSource, Item, Loaded, Score, single
from la_trt.eval.numbers import numbers_in, value_of
from la_trt.eval.parse import boxed, final_answer, plain
from la_trt.eval.rows import RowError, data_files, list_of, read_items, text_of
from la_trt.eval.stats import Metric
from la_trt.eval.suites.choice import LETTERS, accuracy_metrics, letter, listed, score_choice

MAX_IMAGES = 7
_CHOOSE = "Answer with the option's letter from the given choices."
_OPEN = "Answer the question using a single word or phrase."
_MARK = re.compile(r"<image (\d)>")
_SUBJECT = re.compile(r"^(?:dev|validation|test)_(.+)_\d+$")
_INDICATOR = re.compile(
    r"(?:\bcould be|\bso|\bis|\bare|\bthus|\btherefore|\bfinal|\banswer|\bresult|=|:)\s+",
    re.IGNORECASE,
)


class Mmmu:
    """Accuracy over all questions, for choices and open ones, and by subject."""

    name = "mmmu"
    final = staticmethod(final_answer)

    def load(self, source: DataSource) -> Loaded:
        files = data_files(source.data, self.name)

        def make(row: Mapping[str, Any], path: Path, number: int) -> Item:
            return _item(row, path, source)

        return read_items(files, self.name, ("id", "question"), make)

    def score(self, item: Item, answer: str) -> Score:
        if "options" in item.detail:
            score = score_choice(item, answer)
            return Score(
                said=score.said,
                correct=score.correct,
                counts={**score.counts, "choice": 1.0, "choice_right": score.counts["right"]},
            )
        right = open_matches(answer, item.detail["answers"])
        return Score(
            said=boxed(answer) or answer[:200],
            correct=right,
            counts={"n": 1.0, "right": float(right), "choice": 0.0, "choice_right": 0.0},
        )

    unit = staticmethod(single)

    def metrics(self, categories: Sequence[str]) -> list[Metric]:
        headline, *rest = accuracy_metrics(categories)
        choice = Metric(
            name="accuracy, multiple choice",
            of=lambda s: s.ratio("choice_right", "choice"),
            needs="choice",
            over="choice",
        )
        return [headline, choice, *rest]


def _item(row: Mapping[str, Any], path: Path, source: DataSource) -> Item:
    id_, question = text_of(row, "id"), text_of(row, "question")
    kind = text_of(row, "question_type") or "multiple-choice"
    if kind not in ("multiple-choice", "open"):
        raise RowError(f"question_type {kind[:40]!r}, expected multiple-choice or open")
    detail: dict[str, Any]
    if kind == "multiple-choice":
        texts = list_of(row, "options")
        if not 2 <= len(texts) <= len(LETTERS):
            raise RowError(f"{len(texts)} options, expected 2 to {len(LETTERS)}")
        options = dict(zip(LETTERS, texts, strict=False))
        expected, detail = letter(row, options), {"options": options}
        body, instruction = f"{question}\n{listed(options)}", _CHOOSE
    else:
        answers = _answers(row)
        expected, detail = " | ".join(answers), {"answers": answers}
        body, instruction = question, _OPEN
    if source.instruction is not None:
        instruction = source.instruction
    parts, images = interleaved(f"{body}\n{instruction}".strip(), row, source.images or path.parent)
    subject = _SUBJECT.match(id_)
    return Item(
        id=id_,
        unit=id_,
        category=subject[1] if subject else text_of(row, "subfield") or "all",
        parts=parts,
        images=images,
        expected=expected,
        detail=detail,
    )


def _answers(row: Mapping[str, Any]) -> list[str]:
    value = row.get("answer")
    spelt = isinstance(value, str) and value.strip().startswith("[")
    found = list_of(row, "answer") if spelt or isinstance(value, list) else [text_of(row, "answer")]
    found = [text for text in found if text]
    if not found or found == ["?"]:
        raise RowError("no answer (the test split is published without)")
    return found


def interleaved(
    text: str, row: Mapping[str, Any], directory: Path
) -> tuple[tuple[str, ...], tuple[Path | bytes, ...]]:
    """The text cut at its `<image N>` marks, and the images in the order of the marks.

    An image without a mark stands first; a mark without an image is a RowError.
    """
    there = {
        number: image_of(row[f"image_{number}"], directory, f"image_{number}")
        for number in range(1, MAX_IMAGES + 1)
        if row.get(f"image_{number}")
    }
    pieces = _MARK.split(text)
    marked = [int(number) for number in pieces[1::2]]
    parts: list[str] = []
    images: list[Path | bytes] = []
    for number in sorted(set(there) - set(marked)):
        parts.append(IMAGE)
        images.append(there[number])
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            parts.append(piece)
            continue
        if int(piece) not in there:
            raise RowError(f"<image {piece}> is marked, image_{piece} is empty")
        parts.append(IMAGE)
        images.append(there[int(piece)])
    if not images:
        raise RowError("no image")
    return tuple(part for part in parts if part), tuple(images)


def open_matches(answer: str, right: Sequence[str]) -> bool:
    """Whether an open answer is right.

    What is looked at: a boxed part alone, else the answer and the last part of its sentences after
    `is`, `=`, `so` and the like. A right text must stand in it as whole words; a right number must
    equal, to two decimals, a number of it (of the last parts where these hold any).
    """
    said = boxed(answer) or answer
    tails = [
        tail for sentence in re.split(r"\.\s|\n", said) for tail in [_INDICATOR.split(sentence)[-1]]
    ]
    for text in right:
        value = value_of(text)
        if value is None:
            if f" {plain(text)} " in f" {plain(said)} ":
                return True
        elif any(round(n, 2) == round(value, 2) for n in _final_numbers(said, tails)):
            return True
    return False


def _final_numbers(said: str, tails: Sequence[str]) -> list[float]:
    values = [value for tail in tails if (value := value_of(tail)) is not None]
    values += [n for tail in tails[-1:] for n in numbers_in(tail)]
    return values or numbers_in(said)
