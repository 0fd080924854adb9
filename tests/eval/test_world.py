"""LookWorld as a suite: the same questions and numbers as `la_trt.eval.lookworld.evaluate`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from la_trt.eval.items import DataSource, Loaded
from la_trt.eval.lookworld import EvalConfig, questions, well_formed
from la_trt.eval.suites.world import LookWorld
from la_trt.lookworld import FAMILIES, WorldConfig, chair, chair_metrics, pope_metrics
from tests.eval.scripted import concluded, values_of


def load(**fields: object) -> Loaded:
    config = replace(EvalConfig(), **fields)  # type: ignore[arg-type]
    return LookWorld().load(DataSource(options={"config": config}))


def test_the_questions_are_those_of_the_short_evaluation() -> None:
    config = EvalConfig(num_per_family=2, split="test-inverted")
    loaded = LookWorld().load(DataSource(options={"config": config}))
    samples = questions(config)
    assert [item.text for item in loaded.items] == [s.question.text for s in samples]
    assert [item.expected for item in loaded.items] == [s.answer for s in samples]
    image = loaded.items[3].messages()[0]["content"][0]["image"]
    assert samples[3].image is not None and image.tobytes() == samples[3].image.tobytes()


def test_right_answers_score_full_marks() -> None:
    found = values_of(LookWorld(), load(num_per_family=6), lambda item: concluded(item.expected))
    assert found["accuracy"] == 1.0
    assert all(found[f"accuracy, {family}"] == 1.0 for family in FAMILIES)
    assert found["POPE F1, mean"] == 1.0
    assert (found["CHAIRi"], found["CHAIRs"], found["recall"]) == (0.0, 0.0, 1.0)


def test_pope_agrees_with_the_world_s_own() -> None:
    """Yes to every other question, nonsense to every fifth."""
    loaded = load(num_per_family=40, families=("exist",))
    said = ["perhaps" if n % 5 == 4 else "Yes" if n % 2 else "No" for n in range(40)]
    rows = [
        (item.category.removeprefix("exist/"), item.expected, text)
        for item, text in zip(loaded.items, said, strict=True)
    ]
    by_id = {item.id: concluded(text) for item, text in zip(loaded.items, said, strict=True)}
    found = values_of(LookWorld(), loaded, lambda item: by_id[item.id])
    expected = pope_metrics(rows)
    assert set(expected) == {"random", "popular", "adversarial"}
    for setting, pope in expected.items():
        assert found[f"POPE F1, {setting}"] == pytest.approx(pope.f1)
        assert found[f"POPE precision, {setting}"] == pytest.approx(pope.precision)
        assert found[f"POPE recall, {setting}"] == pytest.approx(pope.recall)
        assert found[f"POPE accuracy, {setting}"] == pytest.approx(pope.accuracy)
        assert found[f"POPE yes share, {setting}"] == pytest.approx(pope.yes_frac)
    mean = sum(pope.f1 for pope in expected.values()) / 3
    assert found["POPE F1, mean"] == pytest.approx(mean)


def test_chair_agrees_with_the_world_s_own() -> None:
    loaded = load(num_per_family=7, families=("describe",))
    said = "1 red circle, 2 blue squares and a green star"
    found = values_of(LookWorld(), loaded, lambda item: concluded(said))
    expected = chair_metrics([chair(said, item.detail["scene"]) for item in loaded.items])
    assert found["CHAIRi"] == pytest.approx(expected.chair_i) and expected.chair_i > 0
    assert found["CHAIRs"] == pytest.approx(expected.chair_s)
    assert found["recall"] == pytest.approx(expected.recall)


def test_only_the_conclusion_counts() -> None:
    loaded = load(num_per_family=1, families=("count", "describe"))
    found = values_of(LookWorld(), loaded, lambda item: f"<CAPTION>{item.expected}</CAPTION>")
    assert found["accuracy"] == found["recall"] == 0.0
    found = values_of(LookWorld(), loaded, lambda item: item.expected)
    assert found["accuracy"] == 0.0


def test_the_dials_change_the_questions() -> None:
    plain = load(num_per_family=2)
    cluttered = load(num_per_family=2, world=WorldConfig(clutter=1.0))
    inverted = load(num_per_family=2, split="test-inverted")
    hashes = [[item.sha256 for item in loaded.items] for loaded in (plain, cluttered, inverted)]
    assert hashes[0] == [item.sha256 for item in load(num_per_family=2).items]
    longer = load(num_per_family=2, world=WorldConfig(reasoning_length=3))
    assert hashes[0] == [item.sha256 for item in longer.items]
    for other in hashes[1:]:
        assert not set(hashes[0]) & set(other)


def test_the_format_that_is_reported_is_the_one_that_is_rewarded() -> None:
    sections = ["<SUMMARY>s</SUMMARY>", "<CAPTION>c</CAPTION>", "<REASONING>r</REASONING>"]
    look, end = "<REFLECTION></REFLECTION>", "<CONCLUSION>z</CONCLUSION>"
    assert well_formed("".join([*sections, look, end]))
    assert well_formed("\n\n".join([*sections, look, end]) + "\n")  # as LLaVA-CoT writes them
    assert well_formed("".join([sections[0], look, look, *sections[1:], end]))
    for text in (
        "".join([look, *sections, end]),
        "".join([*sections, end, look]),
        "".join([*sections, "so", end]),
        "".join([*sections, "<CONCLUSION> </CONCLUSION>"]),
        "".join(["<SUMMARY></SUMMARY>", *sections[1:], end]),
        "".join([*sections[:2], end]),
        "".join([*sections, end, end]),
        "",
    ):
        assert not well_formed(text), text
