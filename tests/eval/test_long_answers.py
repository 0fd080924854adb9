"""Answers of 20,000 characters, the worst that repetition makes, are scored.

A pattern that takes the cube of their length would need hours: the test runner's limit ends it.
"""

from __future__ import annotations

import pytest

from la_trt.eval.chair import objects_in
from la_trt.eval.numbers import numbers_in, value_of
from la_trt.eval.parse import boxed, choice, final_answer, yes_no
from la_trt.eval.suites.mathvision import answer_matches
from la_trt.eval.suites.mmmu import open_matches
from la_trt.eval.synonyms import phrase_table

LENGTH = 20_000
TABLE = phrase_table()
OPTIONS = {"A": "red", "B": "blue ball", "C": "1"}
PARTS = [
    *("\n", " ", "A", "A ", "answer", "answer is ", "option *", "*", "(", "(A", "{", "[", "B,"),
    *("\\boxed{", "\\boxed ", "\\text{", "\\text ", "\\frac", "\\frac 1", "\\", "\\pi", "^ "),
    *("1", "1 ", "1,", "1,111", "1{,}", "1.", "1e", ".", "+", "x ^", "x ", "=", "= ", "is ", ". "),
    *("$", "$ ", "'", "red ", "no ", "<CONCLUSION>", "hot ", "5\\frac{1}{2}", "\u221a", "B is "),
]


@pytest.mark.parametrize("start", ["", "The answer", "1", "x"])
@pytest.mark.parametrize("part", PARTS)
def test_every_reader_ends(start: str, part: str) -> None:
    text = start + part * (LENGTH // len(part)) + "-"
    choice(final_answer(text), OPTIONS)
    yes_no(text)
    boxed(text)
    value_of(text)
    numbers_in(text)
    answer_matches(text, "(1,2)")
    open_matches(text, ["12", "red"])
    objects_in(text, TABLE)
