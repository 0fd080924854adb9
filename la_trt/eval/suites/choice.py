"""MMStar and MMBench: one letter of several.

MMStar (Chen et al. 2024): `index`, `question` (which spells its options: `Options: A: ..., B: ...`,
unless columns `A`, `B`, ... hold them), `image`, `answer`, `category`, `l2_category`.

MMBench (Liu et al. 2023): a TSV of `index`, `question`, `hint`, `A` .. `F`, `answer`, `category`,
`image` (base64, or the index of the row that holds it). In CircularEval, the benchmark's rule, a
question is asked once for every rotation of its options and is right only if all of these are.
A file that holds the rotations already (rows `index + k * 1000000`) is taken as it is.

Answers are read by `parse.choice`; one without a clear letter is wrong (some published scripts
guess in its place).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from la_trt.eval.images import image_of
from la_trt.eval.items import IMAGE, BadRow, DataSource, Item, Loaded, Score, single
from la_trt.eval.parse import choice, final_answer
from la_trt.eval.rows import RowError, checked, data_files, read_items, read_rows, text_of
from la_trt.eval.stats import Metric

LETTERS = "ABCDEFGHIJ"
_INSTRUCTION = "Please select the correct answer from the options above."
_SPELT = re.compile(r"(?:^|[\s,])\(?([A-J])[:.)]\s*")
_ROTATION = 1_000_000
_MAX_DIGITS = 18


def accuracy_metrics(categories: Sequence[str], name: str = "accuracy") -> list[Metric]:
    """The accuracy over all units, then by category where there are several."""
    found = [Metric(name=name, of=lambda sums: sums.ratio("right", "n"))]
    for category in sorted(categories) if len(categories) > 1 else ():
        found.append(
            Metric(name=f"{name}, {category}", of=_within(category), categories=(category,))
        )
    return found


def _within(category: str) -> Any:
    return lambda sums: sums.ratio("right", "n", (category,))


def score_choice(item: Item, answer: str) -> Score:
    """Right if the letter is; counts `n` and `right`."""
    said = choice(answer, item.detail["options"])
    right = said == item.expected
    return Score(said=said, correct=right, counts={"n": 1.0, "right": float(right)})


def letter(row: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """The right letter. Raises RowError unless it is one of the options."""
    answer = text_of(row, "answer").strip(" .()").upper()
    if not answer:
        raise RowError("no answer (test splits are published without)")
    if answer not in options:
        raise RowError(f"answer {answer[:40]!r} is none of {', '.join(options)}")
    return answer


def options_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The options in columns `A`, `B`, ..., up to the first that is empty."""
    found: dict[str, str] = {}
    for name in LETTERS:
        text = text_of(row, name)
        if text in ("", "nan"):
            break
        found[name] = text
    return found


def spelt_options(question: str) -> dict[str, str]:
    """The options that a question's text spells after `Options:`; {} if it spells none."""
    _, mark, tail = question.rpartition("Options:")
    if not mark:
        return {}
    found: dict[str, str] = {}
    pieces = _SPELT.split(tail)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if len(found) < len(LETTERS) and name == LETTERS[len(found)]:
            found[name] = text.strip().rstrip(",").strip()
        elif found:  # a letter out of turn is part of the option before it
            last = LETTERS[len(found) - 1]
            found[last] = f"{found[last]} {name}: {text.strip()}"
    return found


def listed(options: Mapping[str, str]) -> str:
    """`A. text` a line."""
    return "\n".join(f"{name}. {text}" for name, text in options.items())


class MMStar:
    """Accuracy over all questions and by category."""

    name = "mmstar"
    final = staticmethod(final_answer)

    def load(self, source: DataSource) -> Loaded:
        files = data_files(source.data, self.name)
        instruction = _INSTRUCTION if source.instruction is None else source.instruction

        def make(row: Mapping[str, Any], path: Path, number: int) -> Item:
            question = text_of(row, "question")
            columns = options_of(row)
            options = columns or spelt_options(question)
            if len(options) < 2:
                raise RowError("no options, in columns or after 'Options:'")
            body = f"{question}\n{listed(options)}" if columns else question
            id_ = text_of(row, "index") or str(number)
            return Item(
                id=id_,
                unit=id_,
                category=text_of(row, "category") or "all",
                parts=(IMAGE, f"{body}\n{instruction}".strip()),
                images=(image_of(row.get("image"), source.images or path.parent),),
                expected=letter(row, options),
                detail={"options": options},
            )

        return read_items(files, self.name, ("question",), make)

    def score(self, item: Item, answer: str) -> Score:
        return score_choice(item, answer)

    unit = staticmethod(single)

    def metrics(self, categories: Sequence[str]) -> list[Metric]:
        return accuracy_metrics(categories)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """One row of MMBench."""

    where: str
    index: int
    text: str
    options: dict[str, str]
    answer: str
    category: str
    image: Path | bytes


class MMBench:
    """CircularEval accuracy (or plain accuracy) over all questions and by category."""

    name = "mmbench"
    final = staticmethod(final_answer)

    def load(self, source: DataSource) -> Loaded:
        files = data_files(source.data, self.name)
        instruction = _INSTRUCTION if source.instruction is None else source.instruction
        circular = bool(source.options.get("circular", True))
        questions, bad = _questions(files, source)
        groups: dict[int, list[_Question]] = {}
        for question in questions:
            groups.setdefault(question.index % _ROTATION, []).append(question)
        items: list[Item] = []
        for index, members in groups.items():
            first = members[0]
            if not circular:
                turns = [(first.options, first.answer)]
            elif len(members) > 1:
                turns = [(q.options, q.answer) for q in members]
            else:
                turns = rotations(first.options, first.answer)
            for number, (options, answer) in enumerate(turns):
                text = f"{first.text}\n{listed(options)}\n{instruction}".strip()
                items.append(
                    Item(
                        id=f"{index}#{number}",
                        unit=str(index),
                        category=first.category,
                        parts=(IMAGE, text),
                        images=(first.image,),
                        expected=answer,
                        detail={"options": options},
                    )
                )
        return checked(items, bad, self.name, files)

    def score(self, item: Item, answer: str) -> Score:
        return score_choice(item, answer)

    def unit(self, scores: Sequence[Score]) -> tuple[bool, dict[str, float]]:
        right = all(score.correct for score in scores)
        first = float(scores[0].correct)
        return right, {"n": 1.0, "right": float(right), "first": first}

    def metrics(self, categories: Sequence[str]) -> list[Metric]:
        headline, *rest = accuracy_metrics(categories)
        one = Metric(
            name="accuracy, options in their first order", of=lambda s: s.ratio("first", "n")
        )
        return [headline, one, *rest]


def rotations(options: Mapping[str, str], answer: str) -> list[tuple[dict[str, str], str]]:
    """All rotations of the options, the given order first, each with its right letter."""
    names, texts = list(options), list(options.values())
    num, right = len(names), list(options).index(answer)
    return [
        (
            {names[i]: texts[(i + shift) % num] for i in range(num)},
            names[(right - shift) % num],
        )
        for shift in range(num)
    ]


def _questions(files: Sequence[Path], source: DataSource) -> tuple[list[_Question], list[BadRow]]:
    found: list[_Question] = []
    bad: list[BadRow] = []
    images: dict[int, Path | bytes] = {}
    seen: set[int] = set()
    for path in files:
        for where, row in read_rows(path):
            try:
                if isinstance(row, RowError):
                    raise row
                question = _question(where, row, source.images or path.parent, images)
                if question.index in seen:
                    raise RowError(f"index {question.index} stands twice")
            except RowError as problem:
                bad.append(BadRow(where=where, reason=str(problem)))
                continue
            seen.add(question.index)
            found.append(question)
    return found, bad


def _question(
    where: str, row: Mapping[str, Any], directory: Path, images: dict[int, Path | bytes]
) -> _Question:
    raw = text_of(row, "index")
    if not raw.isdecimal() or len(raw) > _MAX_DIGITS:
        raise RowError(f"index {raw[:40]!r}, expected a number")
    index, image = int(raw), row.get("image")
    refers = isinstance(image, (str, int)) and str(image).strip().isdecimal()
    if refers and (len(str(image).strip()) > _MAX_DIGITS or int(str(image)) not in images):
        raise RowError(f"image: refers to row {str(image)[:20]}, which did not come before")
    images[index] = images[int(str(image))] if refers else image_of(image, directory)
    question, hint = text_of(row, "question"), text_of(row, "hint")
    if not question:
        raise RowError("no question")
    options = options_of(row)
    if len(options) < 2:
        raise RowError("fewer than two options in columns A, B, ...")
    return _Question(
        where=where,
        index=index,
        text=question if hint in ("", "nan") else f"{hint}\n{question}",
        options=options,
        answer=letter(row, options),
        category=text_of(row, "category") or "all",
        image=images[index],
    )
