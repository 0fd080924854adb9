"""Planted errors: what an answer begins with, what a model that looks, or not, makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from la_trt.errors import UsageError
from la_trt.lookworld import FAMILIES, WorldConfig, sample
from tests.tiny import write_tiny_checkpoint
from train.answering import policy_flags
from train.command import run
from train.looking import looks
from train.lookworld_rules import caption_entries
from train.planting import PLANTS, PlantingConfig, beginning, main, planted

CONFIG = PlantingConfig(num_per_family=2)
WORLD = WorldConfig()


def test_one_wrong_entry_or_none() -> None:
    lies, truths = (planted(CONFIG, WORLD, plant) for plant in PLANTS)
    assert 10 < len(lies) <= 2 * len(FAMILIES)
    assert [(s.question, s.scene, s.answer) for s in lies] == [
        (s.question, s.scene, s.answer) for s in truths
    ]
    for lie, truth in zip(lies, truths, strict=True):
        seen = set(truth.scene.seen())
        assert set(caption_entries(truth.response.text) or ()) == seen
        differs = set(caption_entries(lie.response.text) or ()) ^ seen
        assert 1 <= len(differs) <= 2
        assert lie.image is not None


def test_the_beginning_ends_at_the_reflection() -> None:
    drawn = planted(CONFIG, WORLD, "planted")[0]
    text = beginning(drawn)
    assert text.endswith("</REASONING><REFLECTION>") and text.count("<REFLECTION>") == 1
    assert drawn.response.text.startswith(text)
    body = text[text.index("<REASONING>") + len("<REASONING>") : text.index("</REASONING>")]
    assert beginning(drawn, 3) == text.replace(body, f"{body} {body} {body}")


def test_the_worlds_own_reflections_mend_everything() -> None:
    for drawn in planted(CONFIG, WORLD, "planted"):
        found = looks(drawn.response.text, drawn, True)
        assert found.mended == found.misread >= 1 and found.spoiled == 0
    index = next(k for k in range(99) if not sample("test-inverted", k, replace(
        WORLD, **PLANTS["planted"]), "place").response.spans)  # fmt: skip
    asked = planted(PlantingConfig(num_per_family=index + 1), WORLD, "as it is")
    assert len(asked) < (index + 1) * len(FAMILIES)  # a question that no one error misleads


def test_command(tmp_path: Path) -> None:
    """A model that never says anything else mends nothing and spoils nothing."""
    ckpt = write_tiny_checkpoint(tmp_path / "ckpt", always=("<REFLECTION>",))
    output = tmp_path / "planting.json"
    arguments = ["--ckpt", str(ckpt), "--output", str(output), "--num-per-family", "1"]
    size = '{"sizes": [[112, 112]], "max_objects": 2, "min_objects": 2}'
    assert run(main, [*arguments, "--max-tokens", "700", "--world", size]) == 0
    found = json.loads(output.read_text())
    assert found["config"]["policy"] == "copy"
    for plant in PLANTS:
        assert found[plant]["answers"] >= 5 and found[plant]["named"] == 0
    assert found["planted"]["captions_right"] == 0
    assert found["as it is"]["captions_right"] == found["as it is"]["answers"]
    assert run(main, arguments[2:]) == 2
    assert run(main, [*arguments, "--world", "{clutter"]) == 2


def test_flags_without_effect_are_left_out() -> None:
    assert policy_flags("text", "kv", 25) == {"policy": "text"}
    assert policy_flags("copy", "kv", 25) == {"policy": "copy", "inject": "kv"}
    assert policy_flags("route", "embed", 25)["route_percent"] == 25
    with pytest.raises(UsageError, match="inject"):
        PlantingConfig(inject="paste")
