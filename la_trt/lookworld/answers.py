"""How an answer follows from what was seen: descriptions, derivations and their steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from la_trt.lookworld.scene import Seen


@dataclass(frozen=True, slots=True)
class Filter:
    """A description of objects; None leaves an attribute open."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    digit: int | None = None

    def matches(self, seen: Seen) -> bool:
        """Whether the description fits."""
        return (
            (self.size is None or self.size == seen.size)
            and (self.colour is None or self.colour == seen.colour)
            and (self.shape is None or self.shape == seen.shape)
            and (self.digit is None or self.digit == seen.digit)
        )

    def phrase(self, *, plural: bool = False, article: bool = False) -> str:
        """In words: `large red circle`, `blue objects`, `an orange star`."""
        noun = (self.shape or "object") + ("s" if plural else "")
        words = " ".join(word for word in (self.size, self.colour, noun) if word)
        if self.digit is not None:
            words += f" with the number {self.digit}"
        if article:
            words = ("an " if words[0] in "aeiou" else "a ") + words
        return words

    def of(self, seen: Seen) -> str:
        """What this description asks about, as the object has it: `red circle`, `object`."""
        parts = [
            seen.size if self.size else None,
            seen.colour if self.colour else None,
            seen.shape if self.shape else "object",
        ]
        words = " ".join(part for part in parts if part)
        if self.digit is not None:
            words += f" {seen.digit}" if seen.digit is not None else ""
        return words


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a derivation: its words and the objects it rests on."""

    text: str
    seen: tuple[Seen, ...] = ()


def describe_filters(seen: Sequence[Seen]) -> str:
    """`2 red circles, 1 blue star`: every kind with its number, in order of appearance."""
    kinds = Counter((s.colour, s.shape) for s in seen)
    return ", ".join(
        f"{num} {colour} {shape}{'s' if num > 1 else ''}" for (colour, shape), num in kinds.items()
    )


def derive(
    family: str, kind: str, filters: tuple[Filter, ...], seen: Sequence[Seen], rows: int, cols: int
) -> str | None:
    """The answer that follows from `seen`, or None where the question does not fit it."""
    found = [[s for s in seen if f.matches(s)] for f in filters]
    if family == "count":
        return str(len(found[0]))
    if family == "exist":
        return "Yes" if found[0] else "No"
    if family == "compare":
        return "Yes" if len(found[0]) > len(found[1]) else "No"
    if family == "sum":
        return str(sum(s.digit for s in seen if s.digit is not None))
    if family == "describe":
        return describe_filters(seen)
    if any(len(matches) != 1 for matches in found):
        return None
    first = found[0][0]
    if family == "colour":
        return first.colour
    if family == "shape":
        return first.shape
    if family == "digit":
        return None if first.digit is None else str(first.digit)
    if family == "place":
        return _half(kind, first, rows, cols)
    assert family == "relation", f"no such family: {family}"
    relation = _relation(kind, first, found[1][0])
    return None if relation is None else ("Yes" if relation == kind else "No")


def _half(kind: str, seen: Seen, rows: int, cols: int) -> str | None:
    at, length = (seen.col, cols) if kind == "left-right" else (seen.row, rows)
    if 2 * at + 1 == length:
        return None
    low, high = kind.split("-")
    return low if 2 * at + 1 < length else high


def _relation(kind: str, a: Seen, b: Seen) -> str | None:
    """The kind of relation that holds along the asked axis, or None where there is no gap."""
    if kind in ("above", "below"):
        return None if a.row == b.row else ("above" if a.row < b.row else "below")
    return None if a.col == b.col else ("left-of" if a.col < b.col else "right-of")


def steps(
    family: str,
    kind: str,
    filters: tuple[Filter, ...],
    seen: Sequence[Seen],
    rows: int,
    cols: int,
    length: int = 1,
) -> list[Step]:
    """The derivation in steps; `length` as WorldConfig.reasoning_length.

    The question must fit `seen`: `derive` gives an answer.
    """
    answer = derive(family, kind, filters, seen, rows, cols)
    assert answer is not None, f"{family}: the question does not fit what was seen"
    scan = _scan(family, filters, seen) if length >= 2 else []
    matter = _matter(family, kind, filters, seen, rows, cols) if length in (1, 3) else []
    return [*scan, *matter, Step(_result(family, answer))]


def _result(family: str, answer: str) -> str:
    return "done." if family == "describe" else f"so {answer.lower()}."


def _scan(family: str, filters: tuple[Filter, ...], seen: Sequence[Seen]) -> list[Step]:
    """Every object with a verdict: whether it matters, to which of two descriptions it belongs,
    or (describe) how many of its kind there are so far.
    """
    scanned = []
    so_far: Counter[tuple[str, str]] = Counter()
    for s in seen:
        if family == "sum":
            what = f"number {s.digit}" if s.digit is not None else s.shape
            verdict = "yes" if s.digit is not None else "no"
        elif family == "describe":
            so_far[s.colour, s.shape] += 1
            what, verdict = f"{s.colour} {s.shape}", str(so_far[s.colour, s.shape])
        else:
            fitting = next((k for k, f in enumerate(filters) if f.matches(s)), None)
            what = filters[fitting or 0].of(s)
            words = ("yes",) if len(filters) == 1 else ("first", "second")
            verdict = "no" if fitting is None else words[fitting]
        scanned.append(Step(f"{s.cell} {what} {verdict};", (s,)))
    return scanned


def _matter(
    family: str,
    kind: str,
    filters: tuple[Filter, ...],
    seen: Sequence[Seen],
    rows: int,
    cols: int,
) -> list[Step]:
    """The objects that matter, and what they make together."""
    if family in ("count", "exist"):
        return _tally(filters[0], seen)
    if family == "compare":
        first, second = (_tally(f, seen) for f in filters)
        num_a, num_b = (sum(map(f.matches, seen)) for f in filters)
        word = "more" if num_a > num_b else "less" if num_a < num_b else "equal"
        return [*first, *second, Step(f"{num_a} to {num_b} is {word};")]
    if family == "sum":
        total, summed = 0, []
        for s in seen:
            if s.digit is not None:
                words = f"{total} and {s.digit} make {total + s.digit}"
                summed.append(Step(f"{s.cell} number {s.digit}, {words};", (s,)))
                total += s.digit
        return summed
    if family == "describe":
        kinds: dict[str, list[Seen]] = {}
        for s in seen:
            kinds.setdefault(f"{s.colour} {s.shape}", []).append(s)
        return [Step(f"{of[0].cell} {kind}: {len(of)};", tuple(of)) for kind, of in kinds.items()]
    found = [next(s for s in seen if f.matches(s)) for f in filters]
    a = found[0]
    head = f"{a.cell} {filters[0].of(a)}"
    if family in ("colour", "shape"):
        return [Step(f"{head} is {getattr(a, family)};", (a,))]
    if family == "digit":
        return [Step(f"{head} has {a.digit};", (a,))]
    if family == "place":
        axis, at, num = ("column", a.col, cols) if kind == "left-right" else ("row", a.row, rows)
        return [Step(f"{head}; {axis} {at} of {num} is {_half(kind, a, rows, cols)};", (a,))]
    b = found[1]
    relation = _relation(kind, a, b)
    assert relation is not None, "no gap between the two"
    axis, at, other = (
        ("row", a.row, b.row) if kind in ("above", "below") else ("column", a.col, b.col)
    )
    return [
        Step(f"{head};", (a,)),
        Step(f"{b.cell} {filters[1].of(b)};", (b,)),
        Step(f"{axis} {at} to {other} is {_word(relation)}, asked {_word(kind)};", (a, b)),
    ]


def _word(relation: str) -> str:
    return relation.split("-")[0]


def _tally(f: Filter, seen: Sequence[Seen]) -> list[Step]:
    found = [s for s in seen if f.matches(s)]
    if not found:
        return [Step(f"no {f.phrase()};")]
    return [Step(f"{s.cell} {f.of(s)} {k};", (s,)) for k, s in enumerate(found, 1)]
