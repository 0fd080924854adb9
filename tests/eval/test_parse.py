"""What answers say: yes or no, letters, numbers, and the part that counts."""

from __future__ import annotations

import math

import pytest

from la_trt.eval.numbers import numbers_in, same_number, value_of
from la_trt.eval.parse import boxed, choice, final_answer, plain, yes_no

OPTIONS = {"A": "red", "B": "dark blue", "C": "blue", "D": "12 cm"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<SUMMARY>s</SUMMARY><CONCLUSION> Yes </CONCLUSION>", "Yes"),
        ("<CONCLUSION>a</CONCLUSION><CONCLUSION>b</CONCLUSION>", "b"),
        ("<SUMMARY>s</SUMMARY><CONCLUSION>cut o", ""),
        ("<REASONING>yes yes", ""),
        ("  plain words \n", "plain words"),
        ("", ""),
    ],
)
def test_final_answer(text: str, expected: str) -> None:
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, there is no doubt", "yes"),
        ("NO, there isn't", "no"),
        ("There is a dog. It is not black.", ""),
        ("The answer is yes.", "yes"),
        ("There is no dog in the image.", "no"),
        ("It doesn\u2019t show one.", "no"),
        ("It could be yes or no", ""),
        ("Nothing", ""),
        ("Noah's ark", ""),
        ("", ""),
        ("7", ""),
    ],
)
def test_yes_no(text: str, expected: str) -> None:
    assert yes_no(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(C)", "C"),
        ("C.", "C"),
        ("D: 12 cm", "D"),
        ("A) red, since B is wrong", "A"),
        ("The answer is B.", "B"),
        ("Answer: (C)", "C"),
        ("The answer is A? No, the answer is **C**.", "C"),
        ("It must be (B), I think", "B"),
        ("Either (A) or (B)", ""),
        ("red", "A"),
        ("The colour is dark blue.", "B"),
        ("It is blue", "C"),
        ("red or blue", ""),
        ("12 cm", "D"),
        ("Clearly B", "B"),
        ("A dog is there, so D", "D"),
        ("A dog", ""),
        ("The answer is A dog", ""),
        ("The answer is A because it barks", "A"),
        ("B, because it is", "B"),
        ("A, B and C", ""),
        ("ANSWER: C", "C"),
        ("The correct option is (D).", "D"),
        ("E", ""),
        ("I choose E", ""),
        ("so \\boxed{C}, not B", "C"),
        ("\\boxed{\\text{B}}", "B"),
        ("Both A and C", ""),
        ("", ""),
        ("B\nThe ball is not red.", "B"),
        ("B\n\nExplanation: the ball next to the red one.", "B"),
        ("**B**\nThe red one is behind it.", "B"),
        ("b \r\nnot red", "B"),
        ("A\nB", ""),
        ("B is correct. The ball is not red.", "B"),
        ("B is the right answer, not red", "B"),
        ("B is right of the red ball", "A"),
        ("B because it is not red", "B"),
        ("B - the other ball is red", "B"),
        ("B - A", ""),
        ("B is red", "A"),
        ("A ball is red", "A"),
        ("A ball is dark blue.\nA cube is not.", "B"),
        ("A given ball is dark blue", "B"),
        ("The answer\n is:\n\n B", "B"),
    ],
)
def test_choice(text: str, expected: str) -> None:
    assert choice(text, OPTIONS) == expected


def test_boxed() -> None:
    assert boxed(r"\boxed{1} then \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert boxed(r"\boxed{1} then \boxed{2") == "1"
    assert boxed("none") == ""
    assert boxed(r"} \boxed {1 \boxed{2} 3}") == "2"
    assert boxed(r"\boxed{1 \boxed{2}") == "2"
    assert boxed(r"\boxed{1} {\boxed{2} \boxed{3") == "2"


def test_plain() -> None:
    assert plain(" The, (Dark)  BLUE! ") == "the dark blue"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5.0),
        ("-3.5", -3.5),
        ("1,234", 1234.0),
        ("1,234,567.5", 1234567.5),
        (".5", 0.5),
        ("3/4", 0.75),
        (r"\frac{3}{4}", 0.75),
        (r"$\frac12$", 0.5),
        (r"\dfrac{3\sqrt{2}}{4}", 3 * math.sqrt(2) / 4),
        (r"2\sqrt{3}", 2 * math.sqrt(3)),
        (r"\sqrt2", math.sqrt(2)),
        ("3√2", 3 * math.sqrt(2)),
        (r"12\pi", 12 * math.pi),
        ("2π", 2 * math.pi),
        (r"90^\circ", 90.0),
        (r"50\%", 50.0),
        ("x = 7", 7.0),
        (r"7 \text{ cm}", 7.0),
        ("2^{10}", 1024.0),
        ("-2^2", -4.0),
        ("(1+2)*3-4/2", 7.0),
        ("1e3", 1000.0),
        ("5.", 5.0),
        (r"\left(3+1\right)", 4.0),
        ("1{,}200", 1200.0),
        ("1{,}234{,}567.5", 1234567.5),
        (r"5\frac{1}{2}", 5.5),
        (r"5 \dfrac{1}{2}", 5.5),
        (r"-5\tfrac12", -5.5),
        (r"2 \times 5\frac{10}{20}", 11.0),
        (r"5\frac{3}{2}", 7.5),
        (r"5\frac{\pi}{2}", 2.5 * math.pi),
        (r"2^5\frac{1}{2}", 16.0),
        (r"\sqrt4\frac{1}{2}", 1.0),
        (r"x\text{ is }=" + " " * 1000 + "7", 7.0),
    ],
)
def test_values(text: str, expected: float) -> None:
    assert value_of(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seven",
        "x",
        "3 4",
        "(1",
        "1)",
        r"\frac{1}",
        r"\frac{1}{0}",
        "1/0",
        "2^99999999",
        "9" * 300,
        "(" * 5000,
        r"\sqrt{-1}",
        "(-8)^(1/3)",
        "__import__('os')",
        "1;2",
        "3, 4",
        r"5\frac{0}{0}",
        r"\text{" + "a" * 2000 + "}7",
        "\\",
        "^",
    ],
)
def test_no_values(text: str) -> None:
    assert value_of(text) is None


def test_numbers_in_text() -> None:
    assert numbers_in("from 1,234 to -5.5, .25 and 3e2; 5-3") == [1234, -5.5, 0.25, 300, 5, 3]
    assert numbers_in("x2 and none") == []
    assert numbers_in("1{,}200 of {1,200}") == [1200, 1200]


@pytest.mark.parametrize(
    ("said", "right", "same"),
    [
        (0.33, 1 / 3, True),
        (3.14, math.pi, True),
        (3.1, math.pi, False),
        (12, 12, True),
        (12.01, 12, False),
        (0.01, 0.0101, True),
        (0.02, 0.01, False),
        (0.0, 0.0, True),
        (0.004, 0.0, False),
        (-2, 2, False),
    ],
)
def test_same_number(said: float, right: float, same: bool) -> None:
    assert same_number(said, right) is same
