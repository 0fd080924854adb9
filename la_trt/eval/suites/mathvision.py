"""MathVision: competition problems with a figure, multiple choice or with a free answer.

Wang et al., *Measuring Multimodal Mathematical Reasoning with MATH-Vision Dataset* (2024). Rows:
`id`, `question` (with `<image1>` where the figure stands), `options` (a list, empty for free
answers), `image` (`images/1.jpg`) or `decoded_image`, `answer`, `level`, `subject`.

A free answer is right if it is the right text, or has its value: numbers and small LaTeX
expressions are compared to two decimals (`answer_matches`), tuples part by part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from la_trt.eval.images import image_of
from la_trt.eval.items import IMAGE, DataSource, Item, Loaded, Score, single
from la_trt.eval.numbers import numbers_in, same_number, value_of, without_groups
from la_trt.eval.parse import boxed, final_answer
from la_trt.eval.rows import RowError, data_files, list_of, read_items, text_of
from la_trt.eval.stats import Metric
from la_trt.eval.suites.choice import LETTERS, accuracy_metrics, listed, score_choice

_CHOOSE = "Solve the problem and answer with the option's letter."
_FREE = "Solve the problem and answer with the result alone."
_MARK = re.compile(r"<image(\d)>")
_LEVELS = 5
_MAX_PARTS = 50


class MathVision:
    """Accuracy over all problems, by level and by subject."""

    name = "mathvision"
    final = staticmethod(final_answer)

    def load(self, source: DataSource) -> Loaded:
        files = data_files(source.data, self.name)

        def make(row: Mapping[str, Any], path: Path, number: int) -> Item:
            return _item(row, path, source)

        return read_items(files, self.name, ("id", "question", "answer"), make)

    def score(self, item: Item, answer: str) -> Score:
        if item.detail["options"]:
            score = score_choice(item, answer)
            said, right = score.said, score.correct
        else:
            said = boxed(answer) or answer.strip()
            right = answer_matches(said, item.expected)
        counts = {"n": 1.0, "right": float(right)}
        for level in range(1, _LEVELS + 1):
            counts[f"n{level}"] = float(item.detail["level"] == level)
            counts[f"right{level}"] = float(right and item.detail["level"] == level)
        return Score(said=said[:200], correct=right, counts=counts)

    unit = staticmethod(single)

    def metrics(self, categories: Sequence[str]) -> list[Metric]:
        headline, *rest = accuracy_metrics(categories)
        levels = [
            Metric(
                name=f"accuracy, level {level}",
                of=_at_level(level),
                needs=f"n{level}",
                over=f"n{level}",
            )
            for level in range(1, _LEVELS + 1)
        ]
        return [headline, *levels, *rest]


def _at_level(level: int) -> Any:
    return lambda sums: sums.ratio(f"right{level}", f"n{level}")


def _item(row: Mapping[str, Any], path: Path, source: DataSource) -> Item:
    id_, question, expected = (text_of(row, name) for name in ("id", "question", "answer"))
    texts = list_of(row, "options")
    if len(texts) > len(LETTERS):
        raise RowError(f"{len(texts)} options, expected at most {len(LETTERS)}")
    options = dict(zip(LETTERS, texts, strict=False))
    if options:
        if expected not in options:
            raise RowError(f"answer {expected[:40]!r} is none of {', '.join(options)}")
        # Some problems draw their options in the figure and list letters alone.
        shown = "" if texts == list(options) else f"\n{listed(options)}"
        body, instruction = f"{question}{shown}", _CHOOSE
    else:
        body, instruction = question, _FREE
    if source.instruction is not None:
        instruction = source.instruction
    level = text_of(row, "level")[:9]
    decoded = row.get("decoded_image")
    image = image_of(decoded or row.get("image"), source.images or path.parent)
    text = _MARK.sub(" ", f"{body}\n{instruction}".strip())
    return Item(
        id=id_,
        unit=id_,
        category=text_of(row, "subject") or "all",
        parts=(IMAGE, text.strip()),
        images=(image,),
        expected=expected,
        detail={"options": options, "level": int(level) if level.isdecimal() else 0},
    )


def answer_matches(said: str, right: str) -> bool:
    """Whether a free answer is right: the same text, or the same value.

    A text that is no expression is searched for its one number: `The area is 12 cm^2.` answers
    12, `between 3 and 12` does not.
    """
    if _bare(said) == _bare(right):
        return True
    expected = _values(right)
    if expected is None:
        return False
    found = _values(said.rpartition("=")[2] if said.count("=") == 1 else said)
    if found is None:
        # `cm^2`: an exponent of a unit is no second number.
        numbers = numbers_in(re.sub(r"(?<=[a-zA-Z])\s*\^\s*\{?\d\}?", "", said))
        found = numbers if len(numbers) == 1 else None
    return (
        found is not None and len(found) == len(expected) and all(map(same_number, found, expected))
    )


def _values(text: str) -> list[float] | None:
    """The value of an expression, or those of a tuple's parts; None if one of them has none."""
    whole = value_of(text)
    if whole is not None:
        return [whole]
    inner = text.strip().removeprefix("$").removesuffix("$").strip()
    parts = without_groups(re.sub(r"^[(\[{]|[)\]}]$", "", inner)).split(",")
    if not 2 <= len(parts) <= _MAX_PARTS:
        return None
    values = [value for part in parts if (value := value_of(part)) is not None]
    return values if len(values) == len(parts) else None


def _bare(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    return re.sub(r"[\s$]|\\left|\\right|\\[,;!]", "", text).lower().rstrip(".")
