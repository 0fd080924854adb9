"""Two gloo processes against one: the same loss, the same weights, the same choices of ROUTE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from la_trt.errors import UsageError
from la_trt.model.weights import load_model
from tests.tiny import write_tiny_checkpoint
from tests.train.two_processes import CONFIG, start
from train.checkpointing import load_state, save_state
from train.sft import Trainer, sft


def write_rows(directory: Path) -> Path:
    """Eight rows whose answers have 0 to 3 reflections, which differ between processes."""
    Image.new("RGB", (90, 70), "green").save(directory / "picture.png")
    path = directory / "rows.jsonl"
    with path.open("w") as file:
        for i in range(8):
            response = f"<CAPTION>{i}</CAPTION>" + f"<REFLECTION>{i}b</REFLECTION>" * (i % 4)
            row = {"image": "picture.png", "question": f"How many? {i}", "response": response}
            file.write(json.dumps(row) + "\n")
    return path


def story(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "sft.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of `two_processes`, and beside its runs `one`, by one process."""
    directory = tmp_path_factory.mktemp("runs")
    ckpt = write_tiny_checkpoint(directory / "ckpt", tie_word_embeddings=True)
    data = write_rows(directory)
    start("tests.train.two_processes", ckpt, data, directory)
    sft(Trainer(CONFIG, ckpt, directory / "one", data=data))
    return directory


def test_two_processes_train_to_the_loss_of_one(runs: Path) -> None:
    one, two = story(runs / "one"), story(runs / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
    for ours, theirs in zip(one, two, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-4)
        assert ours["injected_tokens"] == theirs["injected_tokens"]
    assert one[0]["injected_tokens"] > 0 and one[-1]["loss"] < one[0]["loss"]
    assert not (runs / "two" / "sft-1.jsonl").read_text()


def test_two_processes_end_at_the_weights_of_one(runs: Path) -> None:
    states = [load_state(runs / name / "sft.pt") for name in ("one", "two")]
    assert states[0] is not None and states[1] is not None
    start = load_model(runs / "ckpt").state_dict()
    moved = 0
    for name, ours in states[0]["model"].items():
        torch.testing.assert_close(ours, states[1]["model"][name], atol=1e-4, rtol=0)
        moved += not torch.equal(ours, start[name.removeprefix("vlm.")])
    assert moved == len(start)
    rows = [d / "checkpoint" / "model.safetensors" for d in (runs / "one", runs / "two")]
    assert len(rows[0].read_bytes()) == len(rows[1].read_bytes())


def test_two_processes_go_on_bit_for_bit(runs: Path) -> None:
    whole, resumed = (load_state(runs / name / "sft.pt") for name in ("two", "again"))
    assert whole is not None and resumed is not None
    assert whole["step"] == resumed["step"] == 4
    assert whole["positions"] == resumed["positions"] and len(whole["positions"]) == 2
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    for name, values in whole["optimizer"]["state"].items():
        for key, value in values.items():
            assert torch.equal(value, resumed["optimizer"]["state"][name][key]), (name, key)


def test_another_number_of_processes_is_refused(runs: Path, tmp_path: Path) -> None:
    state = load_state(runs / "two" / "sft.pt")
    assert state is not None
    save_state(tmp_path / "sft.pt", state)
    with pytest.raises(UsageError, match="2 processes, now there are 1"):
        Trainer(CONFIG, runs / "ckpt", tmp_path, data=runs / "rows.jsonl")
