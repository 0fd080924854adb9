"""Judges of an answer, and what their votes decide (paper, section 5, step 3).

A verifier looks at one property and says whether it holds, why not, and, where it knows how, the
whole answer with that property put right. `judge` asks all of them. The rules that know LookWorld
stand in `train.lookworld_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from la_trt.errors import InputError, UsageError
from la_trt.lookworld import is_correct
from la_trt.tags import conclusion, parse_tags
from train.data import Example
from train.rewards import accuracy_reward, format_reward

QUORUM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier says. `correction`: the whole answer, corrected; None where it cannot."""

    ok: bool
    reason: str = ""
    correction: str | None = None


class Verifier(Protocol):
    """Judges an answer; must be a pure function of what it is given."""

    @property
    def name(self) -> str:
        """By which its objections are counted."""
        ...

    def __call__(self, question: str, answer_text: str, example: Example) -> Verdict:
        """The verdict on the whole answer, tags included."""
        ...


OK = Verdict(ok=True)


def objection(reason: str, correction: str | None = None) -> Verdict:
    """A verdict that the answer is not right."""
    return Verdict(ok=False, reason=reason, correction=correction)


@dataclass(frozen=True, slots=True)
class FormatVerifier:
    """The response format of the paper's section 2 holds, as `train.rewards.format_reward` reads
    it."""

    name: str = "format"

    def __call__(self, question: str, answer_text: str, example: Example) -> Verdict:
        if format_reward(answer_text) == 1:
            return OK
        return objection(parse_tags(answer_text).flaw or "sections missing, empty or out of order")


@dataclass(frozen=True, slots=True)
class ConclusionVerifier:
    """The CONCLUSION is the right answer. No objection where no right answer is known."""

    name: str = "conclusion"

    def __call__(self, question: str, answer_text: str, example: Example) -> Verdict:
        if example.answer is None:
            return OK
        said = conclusion(answer_text)
        if example.lookworld is not None:
            drawn = example.lookworld.sample()
            right = is_correct(drawn.question, said, drawn.scene)
        else:
            right = accuracy_reward(answer_text, example.answer) == 1
        if right:
            return OK
        corrected = replace_section(answer_text, "CONCLUSION", example.answer)
        return objection("wrong answer" if said else "no answer", corrected)


@dataclass(frozen=True, slots=True)
class CallableVerifier:
    """A verifier made of any function, such as a model that judges.

    `function(question, answer_text, example)` returns a Verdict, a bool, or a text: the reason to
    object, '' for none.
    """

    name: str
    function: Callable[[str, str, Example], Verdict | bool | str]

    def __call__(self, question: str, answer_text: str, example: Example) -> Verdict:
        try:
            said = self.function(question, answer_text, example)
        except Exception as error:
            raise InputError(
                f"verifier {self.name!r}: {type(error).__name__}: {error} (question {example.id})\n"
                "it is called with the question, the answer and the example",
                name="E_VERIFIER",
            ) from error
        if isinstance(said, Verdict):
            return said
        if isinstance(said, bool):
            return OK if said else objection(f"{self.name} objects")
        if isinstance(said, str):
            return objection(said) if said else OK
        raise InputError(
            f"verifier {self.name!r}: expected a Verdict, a bool or a text, got "
            f"{type(said).__name__}",
            name="E_VERIFIER",
        )


def replace_section(answer_text: str, name: str, body: str) -> str | None:
    """The answer with another body in its only section `name`; None if it has none or several."""
    found = parse_tags(answer_text).of(name)
    if len(found) != 1:
        return None
    start, end = found[0].start + len(name) + 2, found[0].end - len(name) - 3
    return answer_text[:start] + body + answer_text[end:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How votes decide. An answer is rejected when `quorum` verifiers object, or one that is
    named in `veto`. `on_reject`: `correct` tries the corrections first, `drop` does not."""

    quorum: int = QUORUM
    veto: tuple[str, ...] = ("format",)
    on_reject: Literal["correct", "drop"] = "correct"

    def __post_init__(self) -> None:
        if self.quorum < 1:
            raise UsageError(f"quorum: expected at least 1, got {self.quorum}")
        if self.on_reject not in ("correct", "drop"):
            raise UsageError(f"on_reject: expected correct or drop, got {self.on_reject!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What became of an answer. `text` is the answer to keep, None when it was dropped.

    `objections`: (verifier, reason) of the answer as it was given, whatever was decided;
    `reason` says what it was dropped for, '' when it was kept.
    """

    status: Literal["kept", "corrected", "dropped"]
    text: str | None
    objections: tuple[tuple[str, str], ...]
    reason: str = ""


def vote(
    verifiers: Sequence[Verifier], question: str, answer_text: str, example: Example
) -> list[tuple[str, Verdict]]:
    """(name, verdict) of every verifier that objects, in their order."""
    verdicts = [(v.name, v(question, answer_text, example)) for v in verifiers]
    return [(name, verdict) for name, verdict in verdicts if not verdict.ok]


def judge(
    verifiers: Sequence[Verifier], answer_text: str, example: Example, rules: Rules | None = None
) -> Decision:
    """Keeps, corrects or drops an answer.

    The paper corrects where two or more judges object, and does not say how. Here the first
    correction that is offered is made and all judges are asked again, each correcting at most
    once, until nobody objects; an answer that cannot be brought there is dropped.
    """
    rules = rules or Rules()
    question = example.question
    against = vote(verifiers, question, answer_text, example)
    objections = tuple((name, verdict.reason) for name, verdict in against)
    if not _rejected(against, rules.quorum, rules.veto):
        return Decision(status="kept", text=answer_text, objections=objections)
    reason = " + ".join(name for name, _ in objections)
    if rules.on_reject == "drop":
        return Decision(status="dropped", text=None, objections=objections, reason=reason)
    text, used = answer_text, set[str]()
    while against:
        offers = [(n, v.correction) for n, v in against if v.correction is not None]
        offer = next(((n, c) for n, c in offers if n not in used), None)
        if offer is None:
            return Decision(
                status="dropped",
                text=None,
                objections=objections,
                reason=f"{reason} (not corrected)",
            )
        used.add(offer[0])
        assert offer[1] is not None, "an offer without a text"
        text = offer[1]
        against = vote(verifiers, question, text, example)
    return Decision(status="corrected", text=text, objections=objections)


def _rejected(against: Sequence[tuple[str, Verdict]], quorum: int, veto: Collection[str]) -> bool:
    return len(against) >= quorum or any(name in veto for name, _ in against)
