"""What an answer about LookWorld must get right: its caption, its reasoning, its reflections.

Each rule knows the scene through the example's reference. An example without one is not judged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from la_trt.lookworld import COLOURS, SHAPES, SIZES, Sample, Seen
from la_trt.lookworld.answers import Step, derive, steps
from la_trt.lookworld.respond import caption, reflection
from la_trt.lookworld.score import normalise, parse_description
from la_trt.lookworld.wordings import HOLDS, WRONG
from la_trt.tags import conclusion, parse_tags
from train.data import Example
from train.verifiers import (
    OK,
    ConclusionVerifier,
    FormatVerifier,
    Verdict,
    Verifier,
    objection,
    replace_section,
)

LENGTHS = (3, 2, 1, 0)
_SIZE, _COLOUR, _SHAPE = ("|".join(names) for names in (SIZES, COLOURS, SHAPES))
_CELL = r"(\d{1,3}),(\d{1,3})"
_ENTRY = re.compile(rf"{_CELL} ({_SIZE}) ({_COLOUR}) ({_SHAPE})(?: (\d))?")
_SEEN_AGAIN = re.compile(rf"{_CELL} (?:nothing|(?:({_SIZE}) )?({_COLOUR}) ({_SHAPE})(?: (\d))?);")
_RESULT = re.compile(r"so ([^;]+)\.\s*$")


def lookworld_verifiers(reasoning_length: int = 3) -> tuple[Verifier, ...]:
    """All rules for LookWorld, in the order in which their corrections build on each other.

    `reasoning_length`: of the reasonings that are written as corrections (WorldConfig).
    """
    return (
        FormatVerifier(),
        CaptionVerifier(),
        ReasoningVerifier(length=reasoning_length),
        ReflectionVerifier(),
        ConclusionVerifier(),
    )


@dataclass(frozen=True, slots=True)
class CaptionVerifier:
    """The CAPTION lists every object of the scene once, at its cell, as it is, and no other."""

    name: str = "caption"

    def __call__(self, question: str, answer_text: str, example: Example) -> Verdict:
        if example.lookworld is None:
            return OK
        seen = example.lookworld.sample().scene.seen()
        corrected = replace_section(answer_text, "CAPTION", _words(caption(seen)))
        listed = caption_entries(answer_text)
        if listed is None:
            return objection("cannot be read", corrected)
        if lists_the_same(listed, seen):
            return OK
        missing = [s for s in seen if s not in listed]
        wrong = [s for s in listed if s not in seen]
        if not missing and not wrong:
            return objection("lists an object twice", corrected)
        return objection("wrong entry" if wrong else "object missing", corrected)


@dataclass(frozen=True, slots=True)
class ReasoningVerifier:
    """What the answer says agrees with itself, whether it is true or not.

    REASONING follows, step by step, from the entries of CAPTION, unless a later reflection calls
    it wrong; and the CONCLUSION is what the last derivation came to.
    """

    name: str = "reasoning"
    length: int = 3

    def __call__(self, question: str, answer_text: str, example: Example) -> Verdict:
        if example.lookworld is None:
            return OK
        drawn = example.lookworld.sample()
        listed = caption_entries(answer_text)
        reasoning = _body(answer_text, "REASONING")
        if listed is None or reasoning is None:
            return objection("cannot be followed")
        follows = derivations(drawn, listed)
        corrected = None
        if follows:
            corrected = replace_section(answer_text, "REASONING", follows[self.length])
        final = _final_derivation(answer_text, reasoning)
        if final == reasoning and _plain(reasoning) not in map(_plain, follows.values()):
            return objection("does not follow from the caption", corrected)
        if not _concludes(final, conclusion(answer_text), drawn, listed):
            return objection("comes to another answer than the conclusion", corrected)
        return OK


@dataclass(frozen=True, slots=True)
class ReflectionVerifier:
    """What each REFLECTION sees is there, its verdict is true, and so is its own derivation.

    A reasoning is right when it comes to the right answer. An empty reflection says nothing
    false.
    """

    name: str = "reflection"

    def __call__(self, question: str, answer_text: str, example: Example) -> Verdict:
        if example.lookworld is None:
            return OK
        drawn = example.lookworld.sample()
        right = {_plain(text) for text in derivations(drawn, drawn.scene.seen()).values()}
        standing = _plain(_body(answer_text, "REASONING") or "")
        listed = caption_entries(answer_text) or []
        for section in parse_tags(answer_text).of("REFLECTION"):
            _, word, rest = _split(section.body)
            reason = _untrue(section.body, drawn)
            is_right = _concludes(standing, drawn.answer, drawn, listed)
            if word == HOLDS:
                if not is_right:
                    reason = reason or "calls a wrong reasoning right"
                elif not _same_result(rest, standing):
                    reason = reason or "comes to another result"
            elif word == WRONG:
                if is_right:
                    reason = reason or "calls a right reasoning wrong"
                elif _plain(rest) not in right:
                    reason = reason or "derives a wrong answer"
                standing = _plain(rest)
            if reason:
                return objection(reason, _with_true_reflection(answer_text, drawn))
        return OK


def caption_entries(answer_text: str) -> list[Seen] | None:
    """The objects that the CAPTION lists, None where it is missing or reads otherwise."""
    body = _body(answer_text, "CAPTION")
    if body is None:
        return None
    entries = []
    for part in filter(None, (piece.strip() for piece in body.split(";"))):
        match = _ENTRY.fullmatch(part)
        if match is None:
            return None
        row, col, size, colour, shape, digit = match.groups()
        entries.append(Seen(int(row), int(col), size, colour, shape, int(digit) if digit else None))
    return entries


def lists_the_same(listed: Sequence[Seen], seen: Sequence[Seen]) -> bool:
    """Whether a caption's entries are the objects that are there, each once, in any order."""
    return sorted(map(_key, listed)) == sorted(map(_key, seen))


@dataclass(frozen=True, slots=True)
class SeenAgain:
    """What a reflection says of a cell: `shape` None for nothing there, `size` and `digit` None
    where it does not say."""

    row: int
    col: int
    size: str | None
    colour: str | None
    shape: str | None
    digit: int | None

    def agrees(self, other: Seen | None) -> bool:
        """Whether what is said holds for the object of that cell, None for an empty one."""
        if self.shape is None or other is None:
            return self.shape is None and other is None
        digit = other.digit if self.digit is None else self.digit
        said = (self.size or other.size, self.colour, self.shape, digit)
        return said == (other.size, other.colour, other.shape, other.digit)


def entries_seen_again(reflection_body: str) -> list[SeenAgain]:
    """What a REFLECTION says it sees, in order, without what it derives from it."""
    found = []
    for match in _SEEN_AGAIN.finditer(_split(reflection_body)[0]):
        row, col, size, colour, shape, digit = match.groups()
        number = int(digit) if digit else None
        found.append(SeenAgain(int(row), int(col), size, colour, shape, number))
    return found


def derivations(drawn: Sample, listed: Sequence[Seen]) -> dict[int, str]:
    """The reasonings that follow from entries, by length; none where the question does not fit."""
    q, scene = drawn.question, drawn.scene
    asked = (q.family, q.kind, q.filters, listed, scene.rows, scene.cols)
    if not listed or derive(*asked) is None:
        return {}
    return {length: _words(steps(*asked, length)) for length in LENGTHS}


def _final_derivation(answer_text: str, reasoning: str) -> str:
    """The reasoning, or what the last reflection that calls it wrong puts in its place."""
    final = reasoning
    for section in parse_tags(answer_text).of("REFLECTION"):
        _, word, rest = _split(section.body)
        if word == WRONG:
            final = rest
    return final


def _split(reflection_body: str) -> tuple[str, str, str]:
    """(what was looked at, HOLDS or WRONG or '', what follows)."""
    at = {word: reflection_body.find(word) for word in (HOLDS, WRONG) if word in reflection_body}
    if not at:
        return reflection_body, "", ""
    word = min(at, key=lambda w: at[w])
    return reflection_body[: at[word]], word, reflection_body[at[word] + len(word) :].strip()


def _untrue(reflection_body: str, drawn: Sample) -> str:
    """Why what a reflection says it sees is not so; '' where it is."""
    there = {(s.row, s.col): s for s in drawn.scene.seen()}
    entries = entries_seen_again(reflection_body)
    if len(entries) != len(re.findall(_CELL, _split(reflection_body)[0])):
        return "cannot be read"
    for entry in entries:
        truth = there.get((entry.row, entry.col))
        if entry.shape is None and truth is not None:
            return "sees nothing where something is"
        if not entry.agrees(truth):
            return "sees what is not there"
    return ""


def _with_true_reflection(answer_text: str, drawn: Sample) -> str | None:
    """The answer with its first reflection replaced by the true one and no others.

    Only where the reasoning is right: what a reflection should say of a wrong one depends on how
    it went wrong, and the reasoning's own correction comes first.
    """
    found = parse_tags(answer_text).of("REFLECTION")
    reasoning = _plain(_body(answer_text, "REASONING") or "")
    listed = caption_entries(answer_text) or []
    if not found or not _concludes(reasoning, drawn.answer, drawn, listed):
        return None
    seen = drawn.scene.seen()
    said = reflection(drawn.scene, drawn.question, seen, False, np.random.default_rng(0))
    true = f"<REFLECTION>{_words(said)}</REFLECTION>"
    parts, at = [], 0
    for k, section in enumerate(found):
        parts += [answer_text[at : section.start], "" if k else true]
        at = section.end
    return "".join([*parts, answer_text[at:]])


def _concludes(derivation: str, said: str, drawn: Sample, listed: Sequence[Seen]) -> bool:
    """Whether a derivation's result is what the conclusion says.

    A description's result is its tally of kinds or, where it makes none, the caption.
    """
    if drawn.question.family == "describe":
        tallied = re.findall(rf"({_COLOUR}) ({_SHAPE}): (?:[\d, ]+: )?(\d+);", derivation)
        kinds = Counter({(colour, shape): int(num) for colour, shape, num in tallied})
        kinds = kinds or Counter((s.colour, s.shape) for s in listed)
        return derivation.rstrip().endswith("done.") and parse_description(said) == dict(kinds)
    result = _result(derivation)
    return result is not None and normalise(said) == normalise(result)


def _result(derivation: str) -> str | None:
    match = _RESULT.search(derivation)
    return match[1].strip() if match else None


def _same_result(rest: str, reasoning: str) -> bool:
    ours, theirs = _result(rest), _result(reasoning)
    if ours is None and theirs is None:
        return rest.strip().endswith("done.") and reasoning.endswith("done.")
    return ours == theirs


def _body(answer_text: str, name: str) -> str | None:
    found = parse_tags(answer_text).of(name)
    return found[0].body if len(found) == 1 else None


def _words(said: Sequence[Step]) -> str:
    return " ".join(step.text for step in said)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _key(seen: Seen) -> tuple[int, int, str, str, str, int]:
    return (*seen[:5], -1 if seen.digit is None else seen.digit)
