"""Scoring conclusions: exact answers, CHAIR for descriptions, POPE for existence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from la_trt.lookworld.config import COLOURS, SHAPES
from la_trt.lookworld.questions import SETTINGS, Question
from la_trt.lookworld.scene import Scene

_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_NUMBERS.split(" "))}
_NUMBER_WORDS |= {"none": "0", "no": "0", "a": "1", "an": "1"}
_ITEM = re.compile(
    rf"(?:\b(\d+|{'|'.join(_NUMBER_WORDS)})\s+)?(?:(?:small|large)\s+)?"
    rf"\b({'|'.join(COLOURS)})\s+({'|'.join(SHAPES)})(s?)\b"
)

Kind = tuple[str, str]  # colour, shape


def normalise(text: str) -> str:
    """Lower case, no punctuation or articles around, single spaces."""
    words = re.sub(r"[^\w\s,]", " ", text.lower()).replace(",", " , ").split()
    return re.sub(r"^(the|a|an) ", "", " ".join(words)).strip(" ,")


def parse_description(conclusion: str) -> dict[Kind, int | None]:
    """The kinds that are mentioned, each with its number; None where a plural has no number."""
    found: dict[Kind, int | None] = {}
    for number, colour, shape, plural in _ITEM.findall(conclusion.lower()):
        value = int(_NUMBER_WORDS.get(number, number)) if number else (None if plural else 1)
        before = found.get((colour, shape), 0)
        found[colour, shape] = None if value is None or before is None else before + value
    return {kind: value for kind, value in found.items() if value != 0}


def is_correct(question: Question, conclusion: str, scene: Scene) -> bool:
    """Whether the conclusion answers the question.

    Case, punctuation, articles, number words and plurals do not matter. A description is
    correct when it mentions every kind (colour and shape) of the scene with its right number
    and no other kind.
    """
    if question.family == "describe":
        kinds = Counter((o.colour, o.shape) for o in scene.objects)
        return parse_description(conclusion) == dict(kinds)
    said, answer = normalise(conclusion), normalise(question.answer)
    if question.family in ("count", "sum", "digit"):
        said = re.sub(r"^(?:number|sum|there (?:is|are))\s+", "", said)
        said = _NUMBER_WORDS.get(said, said)
        return said.isdecimal() and int(said) == int(answer)
    if question.family in ("exist", "relation", "compare"):
        first = said.split()[0] if said else ""
        return first == answer
    return said in (answer, f"{answer}s", f"{answer} half", f"{answer} side")


def chair(conclusion: str, scene: Scene) -> tuple[int, int, float]:
    """(kinds mentioned, of these hallucinated, share of the scene's kinds that is mentioned).

    A kind is a colour with a shape. Over a set of descriptions CHAIRi is the sum of the second
    by the sum of the first, CHAIRs the share with a second above 0.
    """
    said = set(parse_description(conclusion))
    kinds = {(o.colour, o.shape) for o in scene.objects}
    return len(said), len(said - kinds), len(said & kinds) / len(kinds)


@dataclass(frozen=True, slots=True)
class Chair:
    """CHAIR over a set of descriptions. `chair_i`, `chair_s`, `recall` in 0..1."""

    chair_i: float
    chair_s: float
    recall: float
    num: int


def chair_metrics(rows: Iterable[tuple[int, int, float]]) -> Chair:
    """CHAIRi, CHAIRs and mean recall of rows that `chair` returned. Raises ValueError if none."""
    table = list(rows)
    if not table:
        raise ValueError("chair_metrics: expected at least one row, got none")
    mentioned = sum(row[0] for row in table)
    hallucinated = sum(row[1] for row in table)
    return Chair(
        chair_i=hallucinated / mentioned if mentioned else 0.0,
        chair_s=sum(row[1] > 0 for row in table) / len(table),
        recall=sum(row[2] for row in table) / len(table),
        num=len(table),
    )


@dataclass(frozen=True, slots=True)
class Pope:
    """POPE of one setting, all in 0..1; "Yes" is the positive class.

    Without positives precision, recall and F1 are 0 and say nothing.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_frac: float
    num: int
    num_positives: int


def pope_metrics(rows: Iterable[tuple[str | None, str, str]]) -> dict[str, Pope]:
    """POPE by setting, of rows (setting, right answer, conclusion); the paper takes the mean F1.

    A conclusion that is neither Yes nor No is wrong and no Yes. Settings without rows are left
    out. Raises: ValueError for an unknown setting or answer.
    """
    table: dict[str, list[tuple[bool, str]]] = {}
    for setting, answer, conclusion in rows:
        if setting not in SETTINGS or answer not in ("Yes", "No"):
            raise ValueError(f"pope_metrics: unknown setting or answer: {setting!r}, {answer!r}")
        said = (normalise(conclusion).split() or [""])[0]
        table.setdefault(setting, []).append((answer == "Yes", said))
    return {setting: _pope(table[setting]) for setting in SETTINGS if setting in table}


def _pope(rows: Sequence[tuple[bool, str]]) -> Pope:
    hit = sum(positive and said == "yes" for positive, said in rows)
    yes = sum(said == "yes" for _, said in rows)
    positives = sum(positive for positive, _ in rows)
    right = hit + sum(not positive and said == "no" for positive, said in rows)
    precision = hit / yes if yes else 0.0
    recall = hit / positives if positives else 0.0
    return Pope(
        accuracy=right / len(rows),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hit else 0.0,
        yes_frac=yes / len(rows),
        num=len(rows),
        num_positives=positives,
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with the bounds of its bootstrap confidence interval."""

    mean: float
    low: float
    high: float
    num: int


def bootstrap_ci(
    values: Sequence[float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Estimate:
    """The mean of `values` with its percentile bootstrap interval; the same seed, the same bounds.

    `statistic` maps resamples (num_resamples, N) to (num_resamples,); default: the row mean.
    Raises: ValueError for no values.
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 1 or not table.size:
        raise ValueError(f"bootstrap_ci: expected a list of numbers, got shape {table.shape}")
    of = statistic or (lambda resamples: resamples.mean(axis=1))
    rng = np.random.default_rng(seed)
    resamples = table[rng.integers(0, table.size, (num_resamples, table.size))]
    tail = (1 - confidence) / 2
    low, high = np.quantile(of(resamples), [tail, 1 - tail])
    return Estimate(float(of(table[None])[0]), float(low), float(high), table.size)


def by_family(rows: Iterable[tuple[str, bool]], *, seed: int = 0) -> Mapping[str, Estimate]:
    """Accuracy with a 95 % interval by family, and over `all`, of rows (family, correct)."""
    table: dict[str, list[float]] = {}
    for family, correct in rows:
        table.setdefault(family, []).append(float(correct))
    table["all"] = [value for values in table.values() for value in values]
    if not table["all"]:
        raise ValueError("by_family: expected at least one row, got none")
    return {family: bootstrap_ci(values, seed=seed) for family, values in table.items()}
