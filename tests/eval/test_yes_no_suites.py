"""POPE and MME on files of their published forms, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from la_trt.errors import InputError
from la_trt.eval.items import DataSource, take_evenly
from la_trt.eval.report import compare, make_report
from la_trt.eval.suites.mme import Mme
from la_trt.eval.suites.pope import Pope
from tests.eval.scripted import concluded, picture, report_of, values_of


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pope_row(number: int, label: str, **more: Any) -> dict[str, Any]:
    text = f"Is there a thing {number} in the image?"
    return {"question_id": number, "image": "a.jpg", "text": text, "label": label, **more}


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """random: yes yes no no; adversarial: yes no."""
    picture(tmp_path / "a.jpg")
    labels = ("yes", "yes", "no", "no")
    lines(
        tmp_path / "coco_pope_random.json",
        [pope_row(n, label) for n, label in enumerate(labels, 1)],
    )
    lines(tmp_path / "coco_pope_adversarial.json", [pope_row(1, "yes"), pope_row(2, "no")])
    return tmp_path


def test_pope_by_hand(pope: Path) -> None:
    """random: Yes, No, Yes, "unsure": 1 of 2 yeses hit, 1 of 2 positives: P 1/2, R 1/2, F1 1/2,
    right 1 of 4. adversarial: all right. Mean F1 3/4.
    """
    loaded = Pope().load(DataSource(data=pope))
    assert not loaded.bad_rows and len(loaded.items) == 6
    said = {
        "random-1": "Yes",
        "random-2": "No.",
        "random-3": "Yes, there is.",
        "random-4": "unsure",
        "adversarial-1": "yes",
        "adversarial-2": "There is no thing.",
    }
    found = values_of(Pope(), loaded, lambda item: concluded(said[item.id]))
    assert found == {
        "POPE F1, mean": 0.75,
        "POPE F1, random": 0.5,
        "POPE precision, random": 0.5,
        "POPE recall, random": 0.5,
        "POPE accuracy, random": 0.25,
        "POPE yes share, random": 0.5,
        "POPE F1, adversarial": 1.0,
        "POPE precision, adversarial": 1.0,
        "POPE recall, adversarial": 1.0,
        "POPE accuracy, adversarial": 1.0,
        "POPE yes share, adversarial": 0.5,
    }


def test_pope_that_always_says_no(pope: Path) -> None:
    found = values_of(Pope(), Pope().load(DataSource(data=pope)), lambda item: "No")
    assert found["POPE F1, mean"] == found["POPE precision, random"] == 0
    assert found["POPE accuracy, random"] == 0.5


def test_pope_prompts_and_instruction(pope: Path) -> None:
    first = Pope().load(DataSource(data=pope)).items[0]
    assert first.text == "Is there a thing 1 in the image?\nPlease answer yes or no."
    plain = Pope().load(DataSource(data=pope, instruction="")).items[0]
    assert plain.text == "Is there a thing 1 in the image?"
    assert first.sha256 != plain.sha256


def test_pope_exports(tmp_path: Path) -> None:
    """One file of all settings, `question` and `answer` in place of `text` and `label`."""
    picture(tmp_path / "img" / "COCO_1.jpg")
    rows = [
        {"id": 5, "question": "Q?", "answer": "yes", "category": "popular"}
        | {"image_source": "COCO_1"},
        {"id": 5, "question": "Q?", "answer": "No", "category": "random", "image": "COCO_1.jpg"},
    ]
    path = lines(tmp_path / "all.jsonl", rows)
    loaded = Pope().load(DataSource(data=path, images=tmp_path / "img"))
    assert [(i.id, i.category, i.expected) for i in loaded.items] == [
        ("popular-5", "popular", "yes"),
        ("random-5", "random", "no"),
    ]


def test_pope_bad_rows(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    rows = [
        pope_row(1, "yes"),
        pope_row(2, "maybe"),
        {**pope_row(3, "no"), "image": "b.jpg"},
        {**pope_row(4, "no"), "text": ""},
        {**pope_row(5, "no"), "image": ["a.jpg"]},
        pope_row(1, "no"),
    ]
    path = lines(tmp_path / "p.json", rows)
    with path.open("a") as file:
        file.write("{broken\n")
    loaded = Pope().load(DataSource(data=path))
    assert [item.category for item in loaded.items] == ["all"]
    assert [row.where for row in loaded.bad_rows] == [f"p.json row {n}" for n in range(2, 8)]
    report = report_of(Pope(), loaded, lambda item: "yes")
    assert report["num_bad_rows"] == 6 and "maybe" in report["bad_rows"][0]


def test_pope_of_another_suites_file(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.json", [{"index": 1, "A": "x"}] * 3)
    with pytest.raises(InputError, match=r"p\.json row 1: label ''.*3 bad rows"):
        Pope().load(DataSource(data=path))


def mme_files(root: Path) -> Path:
    """existence: two images; OCR: one; code_reasoning: one."""
    for subtask, names in {"existence": "ab", "OCR": "c", "code_reasoning": "d"}.items():
        content = ""
        for name in names:
            picture(root / f"{name}.jpg")
            content += f"{name}.jpg\tIs it {name}?\tYes\n{name}.jpg\tIs it not {name}?\tNo\n"
        (root / f"{subtask}.txt").write_text(content)
    return root


def test_mme_by_hand(tmp_path: Path) -> None:
    """Always Yes but for image `a`, which is all right: existence 3 of 4 and 1 of 2 images:
    75 + 50; OCR and code_reasoning 1 of 2 and none: 50 + 0 each. Perception 175, total 225.
    """
    loaded = Mme().load(DataSource(data=mme_files(tmp_path)))
    assert not loaded.bad_rows and len(loaded.items) == 8

    def reply(item: Any) -> str:
        return concluded("No" if item.text == "Is it not a?" else "Yes")

    found = values_of(Mme(), loaded, reply)
    assert {name: 100 * value for name, value in found.items()} == {
        "total": pytest.approx(225),
        "perception": pytest.approx(175),
        "cognition": pytest.approx(50),
        "existence": pytest.approx(125),
        "OCR": pytest.approx(50),
        "code_reasoning": pytest.approx(50),
    }
    assert report_of(Mme(), loaded, reply)["num_units"] == 4


def test_mme_names_that_no_file_can_have(tmp_path: Path) -> None:
    mme_files(tmp_path)
    rows = "".join(f"{name}\tIs it?\tYes\n" for name in ("x" * 300, "a\0.jpg"))
    (tmp_path / "OCR.txt").write_text(rows + (tmp_path / "OCR.txt").read_text())
    loaded = Mme().load(DataSource(data=tmp_path))
    assert [row.where for row in loaded.bad_rows] == ["OCR.txt row 1", "OCR.txt row 2"]
    assert len(loaded.items) == 8


def test_mme_all_right_is_200_each(tmp_path: Path) -> None:
    loaded = Mme().load(DataSource(data=mme_files(tmp_path)))
    found = values_of(Mme(), loaded, lambda item: item.expected)
    assert (found["total"], found["OCR"]) == (6.0, 2.0)


def test_mme_release_directories(tmp_path: Path) -> None:
    """Questions beside their image, or in `questions_answers_YN` beside `images`."""
    picture(tmp_path / "count" / "1.jpg")
    (tmp_path / "count" / "1.txt").write_text("Are there 2?\tYes\nAre there 3?\tNo\n")
    picture(tmp_path / "scene" / "images" / "x.png")
    (tmp_path / "scene" / "questions_answers_YN").mkdir()
    (tmp_path / "scene" / "questions_answers_YN" / "x.txt").write_text("Sea?\tNo\nLand?\tYes\n")
    (tmp_path / "count" / "2.txt").write_text("Are there 4?\tYes\nAre there 5?\tNo\n")
    moved = picture(tmp_path / "elsewhere" / "count" / "2.png")
    other = Mme().load(DataSource(data=tmp_path, images=tmp_path / "elsewhere"))
    assert [(i.id, i.images) for i in other.items] == [
        ("count/2#1", (moved,)),
        ("count/2#2", (moved,)),
    ]
    loaded = Mme().load(DataSource(data=tmp_path))
    assert [(i.id, i.expected) for i in loaded.items] == [
        ("count/1#1", "yes"),
        ("count/1#2", "no"),
        ("scene/x#1", "no"),
        ("scene/x#2", "yes"),
    ]
    assert [row.where for row in loaded.bad_rows] == ["2.txt row 1", "2.txt row 2"]


def test_mme_rows(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    base = {"category": "color", "image": "a.png", "question_id": "color/a.png"}
    rows = [
        {**base, "question": "Red?", "answer": "Yes"},
        {**base, "question": "Blue?", "answer": "No"},
        {**base, "question_id": "color/b.png", "question": "Red?", "answer": "Yes"},
        {**base, "category": "taste", "question": "Sweet?", "answer": "Yes"},
        {**base, "question": "Red?", "answer": "Yes"},
    ]
    loaded = Mme().load(DataSource(data=lines(tmp_path / "mme.jsonl", rows)))
    assert [item.text for item in loaded.items] == ["Red?", "Blue?"]
    assert [str(row) for row in loaded.bad_rows] == [
        "mme.jsonl row 4: subtask 'taste' is none of MME's",
        "mme.jsonl row 5: the same question about the same image stands twice",
        "mme.jsonl row 3: image color/color/b.png has 1 questions, expected 2",
    ]


def test_a_limit_keeps_pairs_and_takes_categories_in_turn(tmp_path: Path) -> None:
    items = Mme().load(DataSource(data=mme_files(tmp_path))).items
    assert [i.id for i in take_evenly(items, 2)] == [
        "OCR/c.jpg#1",
        "OCR/c.jpg#2",
        "code_reasoning/d.jpg#1",
        "code_reasoning/d.jpg#2",
    ]
    assert len(take_evenly(items, 3)) == 6
    assert take_evenly(items, 99) == items == take_evenly(items, None)


def test_a_setting_without_a_yes_has_no_f1(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    for setting, labels in (("random", ("no", "no")), ("popular", ("yes", "no", "yes"))):
        rows = [pope_row(n, label) for n, label in enumerate(labels)]
        lines(tmp_path / f"coco_pope_{setting}.json", rows)
    suite, loaded = Pope(), Pope().load(DataSource(data=tmp_path))
    answers = {i.id: {"text": concluded(i.expected)} for i in loaded.items}
    settings: dict[str, Any] = {}
    report = make_report(suite, loaded.items, answers, [], settings, seed=0, num_resamples=50)
    scores = {name: score["value"] for name, score in report["scores"].items()}
    assert scores["POPE F1, mean"] == scores["POPE F1, popular"] == 1.0
    assert scores["POPE accuracy, random"] == 1.0 and scores["POPE yes share, random"] == 0.0
    assert not {"POPE F1, random", "POPE recall, random", "POPE precision, random"} & set(scores)
    assert compare(report, report, num_resamples=50)["scores"].keys() == scores.keys()
