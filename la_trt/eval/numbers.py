"""Numbers in answers: plain ones, and small expressions in LaTeX, compared by value."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?"
)
_TOKEN = re.compile(r"\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|\\[a-z]+|[-+*/^(){},]")
_GROUPS = re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))")
_MIXED = re.compile(r"(?<![\w.^)}])(\d+)\\frac\{(\d+)\}\{(\d+)\}")
_MAX_LENGTH = 200
_MAX_TEXT = 2000
_MAX_POWER = 64


def numbers_in(text: str) -> list[float]:
    """The numbers of a text in order: signs, thousands separators, decimals, exponents."""
    found = []
    for match in _NUMBER.finditer(without_groups(text)):
        if match[0] and any(c.isdigit() for c in match[0]):
            value = float(match[0].replace(",", ""))
            if math.isfinite(value):
                found.append(value)
    return found


def without_groups(text: str) -> str:
    """The text with `1{,}200`, LaTeX's thousands separator, as `1200`."""
    return _GROUPS.sub("", text)


def same_number(said: float, right: float) -> bool:
    """Whether two numbers agree to two decimals, or to two digits where `right` is below 0.1.

    Half a unit of the last of these is allowed: 0.33 answers 1/3, 3.14 answers pi.
    """
    allowed = 0.005 if abs(right) >= 0.1 else 0.05 * abs(right)
    return abs(said - right) <= allowed + 1e-12


def value_of(text: str) -> float | None:
    r"""The value of a number or an expression such as `\frac{3\sqrt{2}}{4}`, None if it is none.

    Understood: + - * / ^, brackets, `\frac`, `\sqrt`, `\pi`, `\times`, `\cdot`, juxtaposition,
    a percent or degree sign (dropped), `x = ...` (the right side counts). A whole number before a
    proper fraction of whole numbers is added to it. Nothing is executed.
    """
    text = text.strip()
    if len(text) > _MAX_TEXT or re.search(r"\d\s+\d", text):
        return None
    source = _prepared(text)
    if not source or len(source) > _MAX_LENGTH:
        return None
    tokens = _TOKEN.findall(source)
    if "".join(tokens) != source:
        return None
    try:
        value = _Expression(tokens).whole()
    except (ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None
    return value if math.isfinite(value) else None


def _prepared(text: str) -> str:
    text = text.rpartition("=")[2] if text.count("=") == 1 else text
    text = re.sub(r"\\(?:text|mathrm|mathbf|operatorname)\s*\{[^{}]*\}", "", text)
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|:)", "", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree|°|\\?%|\\?\$|\\\(|\\\)", "", text)
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", without_groups(text))
    text = text.replace("\\cdot", "*").replace("\\times", "*").replace("\\div", "/")
    text = text.replace("√", "\\sqrt ").replace("π", "\\pi ").replace("×", "*").replace("−", "-")
    text = re.sub(r"(?<![\\a-z])(sqrt|pi)(?![a-z])", r"\\\1", text)
    # `\sqrt2`, `\pi r`: a space ends a command, elsewhere it means nothing.
    text = re.sub(r"(\\[a-z]+)\s+", r"\1", text.strip().rstrip("."))
    return _MIXED.sub(_sum_of_mixed, re.sub(r"\s+", "", text))


def _sum_of_mixed(match: re.Match[str]) -> str:
    whole, above, below = match.groups()
    proper = int(above) < int(below)
    return rf"({whole}+\frac{{{above}}}{{{below}}})" if proper else match[0]


class _Expression:
    """A recursive descent over tokens; juxtaposition multiplies."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def whole(self) -> float:
        value = self._sum()
        if self._peek():
            raise ValueError("more than an expression")
        return value

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise ValueError(f"expected {token}")

    def _sum(self) -> float:
        value = self._product()
        while self._peek() in ("+", "-"):
            value += self._product() if self._next() == "+" else -self._product()
        return value

    def _product(self) -> float:
        value = self._signed()
        while (token := self._peek()) and token not in ("+", "-", ")", "}", ","):
            if token == "/":
                self._next()
                value /= self._signed()
            else:
                if token == "*":
                    self._next()
                elif token[0].isdigit() or token[0] == ".":
                    raise ValueError("two numbers side by side")
                value *= self._signed()
        return value

    def _signed(self) -> float:
        if self._peek() in ("+", "-"):
            return self._signed() if self._next() == "+" else -self._signed()
        base = self._atom()
        if self._peek() != "^":
            return base
        self._next()
        power = self._group() if self._peek() == "{" else self._signed()
        if abs(power) > _MAX_POWER:
            raise ValueError("too large a power")
        result = base**power
        if isinstance(result, complex):
            raise ValueError("no real number")
        return float(result)

    def _atom(self) -> float:
        token = self._next()
        if token == "(":
            value = self._sum()
            self._expect(")")
            return value
        if token == "{":
            self._at -= 1
            return self._group()
        if token == "\\pi":
            return math.pi
        if token == "\\sqrt":
            return math.sqrt(self._argument())
        if token == "\\frac":
            return self._argument() / self._argument()
        return float(token)

    def _argument(self) -> float:
        return self._group() if self._peek() == "{" else self._atom()

    def _group(self) -> float:
        self._expect("{")
        value = self._sum()
        self._expect("}")
        return value
