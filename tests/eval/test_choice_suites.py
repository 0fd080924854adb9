"""MMStar, MMBench, MMMU and MathVision on files of their published forms, scored by hand."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from la_trt.errors import InputError
from la_trt.eval.items import IMAGE, DataSource, Item
from la_trt.eval.suites.choice import MMBench, MMStar, rotations, spelt_options
from la_trt.eval.suites.mathvision import MathVision, answer_matches
from la_trt.eval.suites.mmmu import Mmmu, open_matches
from tests.eval.scripted import concluded, picture, report_of, values_of


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def encoded(tmp_path: Path) -> str:
    return base64.b64encode(picture(tmp_path / "a.png").read_bytes()).decode()


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (
            "What is it?\nOptions: A: a cat, B: 2, 3 or 4, C: a dog, D: none",
            {"A": "a cat", "B": "2, 3 or 4", "C": "a dog", "D": "none"},
        ),
        ("Q\nOptions: (A) x\n(B) y", {"A": "x", "B": "y"}),
        (
            "Q\nOptions: A. vitamin C, B. vitamin B: more",
            {"A": "vitamin C", "B": "vitamin B: more"},
        ),
        ("Q without", {}),
        ("Options: none", {}),
    ],
)
def test_spelt_options(question: str, expected: dict[str, str]) -> None:
    assert spelt_options(question) == expected


def test_mmstar_by_hand(tmp_path: Path, encoded: str) -> None:
    """math: right, wrong; science: right by the option's text. Accuracy 2/3."""
    spelt = "What?\nOptions: A: red, B: blue"
    rows = [
        {"index": 0, "question": spelt, "image": encoded, "answer": "A", "category": "math"},
        {"index": 1, "question": spelt, "image": encoded, "answer": "B", "category": "math"},
        {"index": 2, "question": "Columns?", "image": "a.png", "answer": "B"}
        | {"category": "science", "A": "sun", "B": "moon"},
        {"index": 3, "question": "No options", "image": encoded, "answer": "A"},
        {"index": 4, "question": spelt, "image": encoded, "answer": "C"},
        {"index": 5, "question": spelt, "answer": "A"},
    ]
    loaded = MMStar().load(DataSource(data=lines(tmp_path / "mmstar.jsonl", rows)))
    assert [row.where for row in loaded.bad_rows] == [f"mmstar.jsonl row {n}" for n in (4, 5, 6)]
    assert loaded.items[2].text.startswith("Columns?\nA. sun\nB. moon\nPlease select")
    said = {"0": "A", "1": "A", "2": "The moon"}
    found = values_of(MMStar(), loaded, lambda item: concluded(said[item.id]))
    assert found == {
        "accuracy": pytest.approx(2 / 3),
        "accuracy, math": 0.5,
        "accuracy, science": 1.0,
    }


def test_rotations() -> None:
    turned = rotations({"A": "x", "B": "y", "C": "z"}, "B")
    assert turned == [
        ({"A": "x", "B": "y", "C": "z"}, "B"),
        ({"A": "y", "B": "z", "C": "x"}, "A"),
        ({"A": "z", "B": "x", "C": "y"}, "C"),
    ]
    assert all(options[answer] == "y" for options, answer in turned)


def mmbench_rows(encoded: str) -> list[dict[str, Any]]:
    base = {"hint": "", "C": "", "D": "", "image": encoded, "category": "ocr"}
    return [
        {"index": 7, "question": "One?", "A": "x", "B": "y", "answer": "B", **base},
        {"index": 8, "question": "Two?", "A": "x", "B": "y", "answer": "A", **base}
        | {"C": "z", "hint": "Look.", "category": "logic", "image": "7"},
    ]


def test_mmbench_circular_by_hand(tmp_path: Path, encoded: str) -> None:
    """A model that always finds `y` has all of question 7; one that always says B has none whole.

    Question 8 asks for x: in the three orders it stands at A, C, B.
    """
    path = tsv(tmp_path / "mmbench.tsv", mmbench_rows(encoded))
    loaded = MMBench().load(DataSource(data=path))
    assert [i.id for i in loaded.items] == ["7#0", "7#1", "8#0", "8#1", "8#2"]
    assert [i.expected for i in loaded.items] == ["B", "A", "A", "C", "B"]
    assert loaded.items[2].text.startswith("Look.\nTwo?\nA. x\nB. y\nC. z\n")
    assert loaded.items[2].images == loaded.items[0].images
    always_y = values_of(MMBench(), loaded, lambda item: "y")
    assert always_y["accuracy"] == 0.5
    assert (always_y["accuracy, ocr"], always_y["accuracy, logic"]) == (1.0, 0.0)
    always_b = values_of(MMBench(), loaded, lambda item: "B")
    assert always_b["accuracy"] == 0
    assert always_b["accuracy, options in their first order"] == 0.5


def test_mmbench_without_circular(tmp_path: Path, encoded: str) -> None:
    path = tsv(tmp_path / "mmbench.tsv", mmbench_rows(encoded))
    loaded = MMBench().load(DataSource(data=path, options={"circular": False}))
    assert [i.id for i in loaded.items] == ["7#0", "8#0"]
    assert values_of(MMBench(), loaded, lambda item: "B")["accuracy"] == 0.5


def test_mmbench_that_is_rotated_already(tmp_path: Path, encoded: str) -> None:
    one = mmbench_rows(encoded)[0]
    turned = {**one, "index": 1_000_007, "A": "y", "B": "x", "answer": "A", "image": "7"}
    loaded = MMBench().load(DataSource(data=tsv(tmp_path / "m.tsv", [one, turned])))
    assert [(i.id, i.expected) for i in loaded.items] == [("7#0", "B"), ("7#1", "A")]


def test_mmbench_bad_rows(tmp_path: Path, encoded: str) -> None:
    good = mmbench_rows(encoded)[0]
    rows = [
        good,
        good,
        {**good, "index": "x"},
        {**good, "index": 9, "answer": ""},
        {**good, "index": 10, "answer": "C"},
        {**good, "index": 11, "B": ""},
        {**good, "index": 12, "image": "99"},
        {**good, "index": 13, "question": ""},
        {**good, "index": "1" * 5000},
        {**good, "index": 14, "image": "1" * 5000},
    ]
    loaded = MMBench().load(DataSource(data=tsv(tmp_path / "m.tsv", rows)))
    assert len(loaded.items) == 2
    reasons = [row.reason for row in loaded.bad_rows]
    assert [row.where for row in loaded.bad_rows] == [f"m.tsv row {n}" for n in range(2, 11)]
    for part, reason in zip(
        (
            *("twice", "number", "no answer", "none of", "fewer", "row 99", "no question"),
            *("number", "row 11111"),
        ),
        reasons,
        strict=True,
    ):
        assert part in reason


def mmmu_row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"validation_Art_Theory_{number}",
        "question": "What is <image 1>?",
        "options": "['a bust', 'a vase']",
        "image_1": "a.png",
        "image_2": None,
        "answer": "A",
        "question_type": "multiple-choice",
        **fields,
    }


def test_mmmu_by_hand(tmp_path: Path) -> None:
    """Choice: right, and unclear; open: right. Accuracy 2/3, of choices 1/2."""
    picture(tmp_path / "a.png")
    open_row = mmmu_row(3, id="validation_Math_3", question_type="open", options="[]", answer="1/3")
    path = lines(tmp_path / "mmmu.jsonl", [mmmu_row(1), mmmu_row(2), open_row])
    loaded = Mmmu().load(DataSource(data=path))
    assert [i.category for i in loaded.items] == ["Art_Theory", "Art_Theory", "Math"]
    said = {"1": "(A)", "2": "It is old", "3": "It is 0.33"}
    found = values_of(Mmmu(), loaded, lambda item: concluded(said[item.id[-1]]))
    assert found == {
        "accuracy": pytest.approx(2 / 3),
        "accuracy, multiple choice": 0.5,
        "accuracy, Art_Theory": 0.5,
        "accuracy, Math": 1.0,
    }


def test_mmmu_images_stand_where_they_are_marked(tmp_path: Path) -> None:
    one, two, three = (picture(tmp_path / f"{n}.png") for n in (1, 2, 3))
    row = mmmu_row(
        1,
        question="See <image 2> and <image 1>.",
        options=["<image 1>", "else"],
        image_1="1.png",
        image_2="2.png",
        image_3="3.png",
    )
    (item,) = Mmmu().load(DataSource(data=lines(tmp_path / "m.jsonl", [row]))).items
    assert item.images == (three, two, one, one)
    assert item.parts[0] == item.parts[2] == item.parts[4] == item.parts[6] == IMAGE
    assert item.parts[1] == "See " and item.parts[5] == ".\nA. "
    content = item.messages()[0]["content"]
    assert [p["type"] for p in content] == ["image", "text"] * 4
    assert [p["image"] for p in content if "image" in p] == [three, two, one, one]


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"image_1": None}, "is marked"),
        ({"image_1": None, "question": "Q?"}, "no image"),
        ({"answer": "?"}, "none of"),
        ({"answer": "C"}, "none of"),
        ({"options": "['a']"}, "1 options"),
        ({"options": "nonsense"}, "expected a list"),
        ({"question_type": "essay"}, "essay"),
        ({"question_type": "open", "answer": "?"}, "no answer"),
        ({"question_type": "open", "answer": ""}, "no answer"),
        ({"question": ""}, "no question"),
        ({"id": ""}, "no id"),
    ],
)
def test_mmmu_bad_rows(tmp_path: Path, fields: dict[str, Any], part: str) -> None:
    picture(tmp_path / "a.png")
    path = lines(tmp_path / "m.jsonl", [mmmu_row(1), mmmu_row(2, **fields)])
    loaded = Mmmu().load(DataSource(data=path))
    assert [row.where for row in loaded.bad_rows] == ["m.jsonl row 2"]
    assert part in loaded.bad_rows[0].reason


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("12", ["12"], True),
        ("The answer is 12.", ["12"], True),
        ("3 + 9 = 12", ["12"], True),
        ("12.004", ["12"], True),
        ("12.1", ["12"], False),
        ("from 12 to 14, so 13", ["12"], False),
        ("1,200 dollars", ["1200"], True),
        ("\\boxed{12} not 13", ["12"], True),
        ("\\boxed{13} not 12", ["12"], False),
        ("the Mona Lisa", ["Mona Lisa"], True),
        ("Mona", ["Mona Lisa"], False),
        ("thermocouples", ["couple"], False),
        ("grey", ["gray", "grey"], True),
        ("one half, 0.5", ["1/2"], True),
        ("", ["12"], False),
        ("", ["grey"], False),
    ],
)
def test_mmmu_open_answers(answer: str, right: list[str], expected: bool) -> None:
    assert open_matches(answer, right) is expected


def vision_row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "question": "How many?\n<image1>",
        "options": [],
        "image": "images/a.jpg",
        "answer": "12",
        "level": 1,
        "subject": "counting",
        **fields,
    }


def test_mathvision_by_hand(tmp_path: Path) -> None:
    """Level 1: right; level 5: a letter right, an expression wrong. Accuracy 2/3."""
    picture(tmp_path / "images" / "a.jpg")
    letters = ["A", "B", "C"]
    rows = [
        vision_row(1),
        vision_row(2, level=5, options=letters, answer="B", subject="algebra"),
        vision_row(3, level=5, answer=r"\frac{3}{4}", subject="algebra"),
        vision_row(4, options=letters, answer="D"),
        vision_row(5, image="images/b.jpg"),
    ]
    loaded = MathVision().load(DataSource(data=lines(tmp_path / "test.jsonl", rows)))
    assert [row.where for row in loaded.bad_rows] == ["test.jsonl row 4", "test.jsonl row 5"]
    assert "<image1>" not in loaded.items[0].text and "\nA. A" not in loaded.items[1].text
    said = {"1": r"\boxed{12}", "2": "B", "3": "0.7"}
    found = values_of(MathVision(), loaded, lambda item: concluded(said[item.id]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert (found["accuracy, level 1"], found["accuracy, level 5"]) == (1.0, 0.5)
    assert (found["accuracy, counting"], found["accuracy, algebra"]) == (1.0, 0.5)
    odd = lines(tmp_path / "odd.jsonl", [vision_row(1, level="1" * 5000)])
    assert MathVision().load(DataSource(data=odd)).items[0].detail["level"] not in range(1, 6)


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("12", "12", True),
        ("12.0", "12", True),
        ("The area is 12 cm^2.", "12", True),
        ("between 3 and 12", "12", False),
        ("x = 12", "12", True),
        (r"\frac{1}{2}", "0.5", True),
        ("1/2", r"\frac12", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        ("3.46", r"2\sqrt{3}", True),
        ("3.4", r"2\sqrt{3}", False),
        ("(1, 2)", "(1,2)", True),
        ("(1.0, 4/2)", "(1,2)", True),
        ("(2, 1)", "(1,2)", False),
        ("1", "(1,2)", False),
        (r"90^\circ", "90", True),
        ("Tuesday", "tuesday", True),
        ("Monday", "Tuesday", False),
        ("", "12", False),
        ("A", "12", False),
        ("1{,}200", "1200", True),
        ("(1{,}200, 5)", "(1200,5)", True),
        (r"5\frac{1}{2}", "5.5", True),
        (r"5\frac{1}{2}", "2.5", False),
        ("$ [1.0, 2] $", "(1,2)", True),
        (", ".join(["1.0"] * 51), ",".join(["1"] * 51), False),
    ],
)
def test_mathvision_free_answers(said: str, right: str, expected: bool) -> None:
    assert answer_matches(said, right) is expected


@pytest.mark.parametrize("suite", [MMStar(), MMBench(), Mmmu(), MathVision()])
def test_a_file_of_another_kind(tmp_path: Path, suite: Any) -> None:
    path = lines(tmp_path / "other.jsonl", [{"text": "Is it?", "label": "yes"}])
    with pytest.raises(InputError, match=rf"suite {suite.name}: no question.*row 1"):
        suite.load(DataSource(data=path))


def test_a_question_is_told_from_another(encoded: str) -> None:
    def item(**fields: Any) -> Item:
        made: dict[str, Any] = {
            "id": "1",
            "unit": "1",
            "category": "c",
            "parts": (IMAGE, "Q?"),
            "images": (base64.b64decode(encoded),),
            "expected": "A",
        }
        return Item(**{**made, **fields})

    same, others = (
        item().sha256,
        [
            item(id="2"),
            item(parts=("Q?",)),
            item(images=(b"other",)),
            item(expected="B"),
            item(stamp="x"),
        ],
    )
    assert item().sha256 == same
    assert len({same, *(other.sha256 for other in others)}) == 6


def test_scores_of_a_part_count_that_part(tmp_path: Path) -> None:
    """A level that no problem has, or choices where all are open, say nothing and are left out."""
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "a.png")
    problems = [vision_row(1), vision_row(2, level=3), vision_row(3, level=3)]
    vision = lines(tmp_path / "vision.jsonl", problems)
    open_rows = [
        mmmu_row(n, question_type="open", options="[]", answer=str(n)) for n in range(1, 3)
    ]
    for suite, path, expected in (
        (MathVision(), vision, {"level 1": 1, "level 3": 2}),
        (Mmmu(), lines(tmp_path / "open.jsonl", open_rows), {}),
        (
            Mmmu(),
            lines(tmp_path / "both.jsonl", [*open_rows, mmmu_row(4)]),
            {"multiple choice": 1},
        ),
    ):
        loaded = suite.load(DataSource(data=path))
        scores = report_of(suite, loaded, lambda item: concluded("12"))["scores"]
        found = {
            name.removeprefix("accuracy, "): score["num"]
            for name, score in scores.items()
            if "level" in name or "choice" in name
        }
        assert found == expected
        assert scores["accuracy"]["num"] == len(loaded.items)
