"""The three rule-based rewards of BRPO as pure functions (paper, section 4)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from la_trt.errors import InputError, UsageError
from la_trt.eval.lookworld import well_formed
from la_trt.lookworld.score import parse_description
from la_trt.tags import conclusion
from train.ranges import FINITE, check

IDEAL_LENGTH = 100.0  # tokens a reflection, the paper's lambda

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_NUMBERS = {word: value for value, word in enumerate(_WORDS.split())} | {"no": 0, "none": 0}
_NUMBER = re.compile(r"[-+]?(?:\d{1,30}|\d{1,3}(?:,\d{3}){1,9})(?:\.\d{1,30}|/\d{1,30})?")
_LEAD_IN = re.compile(
    r"^(?:(?:so|thus|hence|therefore)[ ,]+)?"
    r"(?:(?:(?:the )?(?:correct |right |final )?(?:answer|option)"
    r"|(?:the )?(?:number|sum|colou?r|shape))(?: is|:| =)? ?(?<=\W)"
    r"|(?:it is|it's|there (?:is|are)) )?"
)
_ARTICLE = re.compile(r"^(?:the|an?) (?=.)")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_KIND = r"\d+ \w+ \w+"
_DESCRIPTION = re.compile(rf"{_KIND}(?:, {_KIND})*")


def format_reward(text: str) -> float:
    """1.0 where the answer has the format of section 2 (`la_trt.eval.lookworld.well_formed`),
    else 0.0."""
    return float(well_formed(text))


def accuracy_reward(text: str, answer: str) -> float:
    """1.0 where the last complete CONCLUSION of `text` is the right answer, else 0.0.

    The whole conclusion must match, not a part of it, so that listing every answer earns nothing.
    What does not matter: case, spaces, quotation marks, a full stop, `\\boxed{}`, a lead-in such
    as "The answer is", an article. Then, by the kind of the right answer:

    - Yes or No: the conclusion begins with it and does not hold the other one.
    - A number: equal in value; digits, thousands commas, fractions, and the words zero to
      twenty ("none" and "no" are 0).
    - One capital letter: that letter, also as "(B)", "B." or "B: text".
    - A list like `2 red circles, 1 blue star` (LookWorld's `describe`): the same kinds with the
      same numbers in any order, by `la_trt.lookworld.score.parse_description`.
    - Other text: equal, or with a plural s, "half" or "side" after it.

    Raises: InputError for an empty right answer.
    """
    right = _plain(answer)
    if not right:
        raise InputError("accuracy_reward: the right answer is empty", name="E_ANSWER")
    said = conclusion(text)
    boxed = _BOXED.findall(said)
    said = _plain(boxed[-1] if boxed else said)
    return float(bool(said) and _matches(said, right, letter=_is_letter(answer)))


def balance_reward(
    num_reflections: int,
    num_reflection_tokens: int,
    ideal_length: float = IDEAL_LENGTH,
    *,
    none: float = 0.0,
    floor: float | None = None,
) -> float:
    """`1 - |L / N - ideal| / ideal` for N reflections of L tokens in all: at most 1.

    The tokens are those inside the reflections, their tags not counted. `none` is the reward of
    an answer without any reflection, which the paper leaves open: 0, what empty reflections get,
    so that not to reflect is never better than to reflect, and no worse than to feign it. Means
    above twice the ideal are negative without bound, as the formula says; `floor` (such as 0 or
    -1) bounds them. Raises: ValueError (UsageError) for what cannot be.
    """
    if num_reflections < 0 or num_reflection_tokens < 0 or not ideal_length > 0:
        raise UsageError(
            "balance_reward: expected numbers >= 0 and an ideal length above 0, got "
            f"{num_reflections}, {num_reflection_tokens} and {ideal_length}"
        )
    if num_reflections == 0:
        if num_reflection_tokens:
            raise UsageError(
                f"balance_reward: {num_reflection_tokens} tokens in 0 reflections cannot be"
            )
        return none
    reward = 1 - abs(num_reflection_tokens / num_reflections - ideal_length) / ideal_length
    return reward if floor is None else max(floor, reward)


def count_reflections(
    tokens: Sequence[int], open_id: int | None, close_id: int | None
) -> tuple[int, int]:
    """(reflections opened, tokens inside them) of an answer's token ids.

    The tags themselves do not count; one that is never closed reaches to the end of the answer.
    """
    num = inside = 0
    is_open = False
    for token in tokens:
        if token == open_id and open_id is not None:
            num, is_open = num + 1, True
        elif token == close_id:
            is_open = False
        else:
            inside += is_open
    return num, inside


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """The weights of the three rewards (the paper names none: 1 each) and what it leaves open.

    `truncated`: answers cut off at the most tokens get 0 in all ("zero"), are left out of the
    group's statistics and of the loss ("mask"), or are rewarded like any other ("keep").
    `no_reflection` and `balance_floor`: see `balance_reward`.
    """

    accuracy_weight: float = 1.0
    format_weight: float = 1.0
    balance_weight: float = 1.0
    ideal_length: float = IDEAL_LENGTH
    no_reflection: float = 0.0
    balance_floor: float | None = None
    truncated: Literal["zero", "mask", "keep"] = "zero"

    def __post_init__(self) -> None:
        if self.truncated not in ("zero", "mask", "keep"):
            raise UsageError(f"truncated: expected zero, mask or keep, got {self.truncated!r}")
        check(
            self,
            accuracy_weight=FINITE,
            format_weight=FINITE,
            balance_weight=FINITE,
            no_reflection=FINITE,
            balance_floor=FINITE,
        )
        if not 0 < self.ideal_length < math.inf:
            raise UsageError(f"ideal_length: expected a number above 0, got {self.ideal_length}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """The rewards of one answer before weighting, and their weighted sum."""

    accuracy: float
    format: float
    balance: float
    total: float


def reward_answer(
    text: str,
    answer: str,
    *,
    num_reflections: int,
    num_reflection_tokens: int,
    truncated: bool,
    config: RewardConfig,
) -> Rewards:
    """The rewards of one answer; `total` is what the advantage is made of."""
    accuracy, form = accuracy_reward(text, answer), format_reward(text)
    balance = balance_reward(
        num_reflections,
        num_reflection_tokens,
        config.ideal_length,
        none=config.no_reflection,
        floor=config.balance_floor,
    )
    total = (
        config.accuracy_weight * accuracy
        + config.format_weight * form
        + config.balance_weight * balance
    )
    if truncated and config.truncated == "zero":
        total = 0.0
    return Rewards(accuracy=accuracy, format=form, balance=balance, total=total)


def _plain(text: str) -> str:
    """Lower case, single spaces, no quotation marks around, no full stop at the end."""
    return " ".join(text.lower().split()).strip("\"'`*$ ").rstrip(".! ").strip("\"'`*$ ")


def _is_letter(answer: str) -> bool:
    return re.fullmatch(r"\s*\(?[A-Z]\)?\.?\s*", answer) is not None


def _matches(said: str, right: str, *, letter: bool) -> bool:
    if _DESCRIPTION.fullmatch(right) and (kinds := parse_description(right)):
        return parse_description(said) == kinds
    bare = _LEAD_IN.sub("", said)
    if right in ("yes", "no"):
        words = re.findall(r"\w+", bare)
        return words[:1] == [right] and not ({"yes", "no"} - {right}) & set(words)
    if letter:
        option = re.escape(right.strip("()."))
        return re.fullmatch(rf"\(?{option}(?:[).:]+(?: .*)?)?", bare) is not None
    value = _number(right)
    if value is not None:
        return value == _number(bare)
    wanted = re.escape(_ARTICLE.sub("", right))
    return re.fullmatch(wanted + r"(?:s| half| side)?", _ARTICLE.sub("", bare)) is not None


def _number(text: str) -> Fraction | None:
    if text in _NUMBERS:
        return Fraction(_NUMBERS[text])
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
