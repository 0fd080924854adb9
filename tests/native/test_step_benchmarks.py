"""Steps that `benchmarks.peer_ours` takes in turns, and how `benchmarks.peers` tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import speculate
from benchmarks.batch_steps import measure, step_ops
from benchmarks.make_3b import shape_3b
from benchmarks.native_bundle import pack
from benchmarks.peer_ours import FIRST_VISUAL, NUM_VISUAL, Worker
from benchmarks.peers import by_kind
from build_engines.build import build
from la_trt.assets import TINY_CHECKPOINT
from la_trt.model import QwenVL
from tests.native.helpers import needs_native
from tests.tiny import write_tiny_checkpoint

IDS = [5 + i % 40 for i in range(FIRST_VISUAL + NUM_VISUAL + 30)]


def test_steps_taken_forth_and_back_are_sorted_by_kind() -> None:
    assert by_kind([1, 2, 3, 30, 20, 10, 100, 200, 300], 3) == [
        [1, 10, 100],
        [2, 20, 200],
        [3, 30, 300],
    ]
    assert by_kind([1, 2, 20, 10, 100], 2) == [[1, 10], [2, 20]]  # half a turn is left out


def test_operations_of_a_token_are_two_for_each_weight() -> None:
    config = shape_3b(num_layers=2)
    with torch.device("meta"):
        model = QwenVL(config)
    weights = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "visual" not in name
    }
    assert config.text.tie_word_embeddings  # so that the table, listed once, is the head
    assert step_ops(config.text) == 2 * sum(weights.values())


def test_gains_are_of_the_first_batch_and_of_neighbours() -> None:
    class Canned:
        def ask(self, **_: Any) -> dict[str, Any]:
            return {"decode_s": [9.0, 9.0, 0.2, 0.3, 0.4, 0.8]}

    found = measure(Canned(), [2, 4], 64, 1, 3, lambda _: None)  # type: ignore[arg-type]
    assert found[2]["gain"] == [1.0, 1.0, 1.0]
    assert found[4]["gain"] == pytest.approx([2.0, 1.0, 3.0])
    assert found[4]["step_ms"] == pytest.approx(500)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    path: Path = tmp_path_factory.mktemp("bundle")
    write_tiny_checkpoint(path / "ckpt")
    pack(path / "ckpt", path / "int8", "int8")
    return Worker(path / "int8", 2)


@needs_native
def test_every_kind_of_step_stands_behind_the_prompt_alone(worker: Worker) -> None:
    kinds: tuple[dict[str, Any], ...] = (
        {"batches": [1, 3]},
        {"batches": [3, 2, 1]},
        {"mass": True},
    )
    answers = [worker.answer(ids=IDS, decode=7, **kind) for kind in kinds]
    for answer in answers:
        assert len(answer["decode_s"]) == 7
        assert answer["tokens"] == answers[0]["tokens"]


@needs_native
def test_a_batch_alone_goes_on_behind_its_own_tokens(worker: Worker) -> None:
    one, many = (worker.answer(ids=IDS, decode=7, batches=[n])["tokens"] for n in (1, 3))
    assert one == many
    assert worker.answer(ids=IDS + one[:-1])["tokens"] == one[-1:]


@needs_native
@pytest.mark.parametrize("own", [False, True])
def test_guesses_are_timed_on_the_same_answers(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of `benchmarks.speculate`: the shipped model's own steps, and another bundle's."""
    published: list[Any] = []
    monkeypatch.setattr("benchmarks.speculate.publish", lambda *args: published.append(args))
    arguments = ["--answers", "2", "--learn", "3", "--guess", "2", "--threads", "1"]
    if not own:
        build(TINY_CHECKPOINT, tmp_path / "other", quant="int8", graphs=False)
        arguments += ["--engine", str(tmp_path / "other"), "--context", "20"]
    done = CliRunner().invoke(speculate.main, arguments)
    assert done.exit_code == 0, done.output
    ((_, result, table),) = published
    none, cold, learned, wrong = result["rows"]
    assert none["tokens_per_step"] == wrong["tokens_per_step"] == 1.0
    assert 1 < cold["tokens_per_step"] < learned["tokens_per_step"] < 3
    assert "| learned | 2 |" in table and "(least to greatest)" in table
