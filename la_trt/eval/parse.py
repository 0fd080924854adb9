"""What an answer says: its final part, yes or no, or the letter of a choice."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from la_trt.tags import ALL_TAGS, conclusion

_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
# For texts with single spaces: `\s*` beside `\s*` would take cubic time.
_START = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]|,(?! ?[A-J]\b)|$)")
_EXPLAINED = re.compile(
    r"([A-Z]) (?:[-\u2013\u2014] (?![A-J]\b)|(?:as|because|since|which)\b"
    r"|is (?:the )?(?:answer\b|correct\b(?!\?)|(?:best|right)(?: answer| choice| option|[.,;!]|$)))"
)
_ANSWER_IS = re.compile(
    r"(?i:answer|option|choice) ?(?:is|:|=|would be)? ?:? ?\** ?[(\[]?([A-Z])(?![A-Za-z])[)\]]?"
)
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
_ALONE = re.compile(r"(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
# A capital A before a small letter is the article, unless a reason or another letter follows.
_ARTICLE = re.compile(r"\bA (?!(?:and|or|is|since|because|as|for|which|given)\b)(?=[a-z])")
_NO = {"no", "not", "isn't", "aren't", "doesn't", "don't", "cannot", "can't", "none"}


def final_answer(text: str) -> str:
    """The part of an answer that is scored.

    The text inside the last complete CONCLUSION; the whole text of a model that uses no tag at
    all; '' where tags are used and no CONCLUSION is complete (a truncated answer says nothing).
    """
    if any(tag in text for tag in ALL_TAGS):
        return conclusion(text)
    return text.strip()


def yes_no(answer: str) -> str:
    """'yes', 'no', or '' where the answer is neither.

    The first word decides if it is one of the two; else the first sentence does, if it holds
    words of one kind only.
    """
    words = re.findall(r"[a-z']+", answer.lower().replace("\u2019", "'"))
    if words and words[0] in ("yes", "no"):
        return str(words[0])
    first = re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0]
    heard = set(re.findall(r"[a-z']+", first.lower().replace("\u2019", "'")))
    if "yes" in heard:
        return "" if "no" in heard else "yes"
    return "no" if heard & _NO else ""


def choice(answer: str, options: Mapping[str, str]) -> str:
    """The letter that the answer chooses among `options` (letter -> text), '' if none is clear.

    In this order: a boxed answer is read alone; the letter that it begins with (`B` alone on its
    line, `(B)`, `B. text`, `B is correct`, `B because`); the last `answer is B`; the one letter in
    brackets; the one option whose text the answer is or contains; the one letter that stands
    alone. Two candidates at one stage are no choice.
    """
    answer = (boxed(answer) or answer).replace("**", "").strip()
    lines = [line.strip().upper() for line in answer.splitlines()]
    if lines and lines[0] in options and len(set(lines) & set(options)) == 1:
        return lines[0]
    answer = " ".join(answer.split())
    start = _START.match(answer) or _EXPLAINED.match(answer)
    if start and start[1].upper() in options:
        return start[1].upper()
    answer = _ARTICLE.sub("", answer)
    named = [letter for letter in _ANSWER_IS.findall(answer) if letter in options]
    if named:
        return str(named[-1])
    for stage in (_bracketed, _by_text, _alone):
        found = stage(answer, options)
        if len(found) == 1:
            return found.pop()
        if found:
            return ""
    return ""


def _bracketed(answer: str, options: Mapping[str, str]) -> set[str]:
    return set(_BRACKETED.findall(answer)) & set(options)


def _by_text(answer: str, options: Mapping[str, str]) -> set[str]:
    """Options that the answer is, else those it contains that are no part of a longer one."""
    said = plain(answer)
    texts = {letter: plain(text) for letter, text in options.items() if plain(text)}
    same = {letter for letter, text in texts.items() if text == said}
    if same:
        return same
    padded = f" {said} "
    inside = {letter: text for letter, text in texts.items() if f" {text} " in padded}
    return {
        letter
        for letter, text in inside.items()
        if not any(
            other != letter and len(longer) > len(text) and f" {text} " in f" {longer} "
            for other, longer in inside.items()
        )
    }


def _alone(answer: str, options: Mapping[str, str]) -> set[str]:
    return set(_ALONE.findall(answer)) & set(options)


def plain(text: str) -> str:
    """Lower case, without punctuation at the ends of words, single spaces."""
    words = (word.strip(string.punctuation) for word in text.lower().split())
    return " ".join(word for word in words if word)


def boxed(text: str) -> str:
    r"""The content of the last complete `\boxed{...}`, '' if there is none."""
    opened: list[re.Match[str]] = []
    start = end = 0
    for match in _BRACE.finditer(text):
        if match[0] != "}":
            opened.append(match)
        elif opened:
            brace = opened.pop()
            if brace[0] != "{" and brace.end() > start:
                start, end = brace.end(), match.start()
    return text[start:end].strip()
