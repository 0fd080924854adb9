"""Training states: whole or absent, whatever kills the process, and bit for bit the same after."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from la_trt.errors import CheckpointError
from train.checkpointing import load_state, rng_state, save_state, set_rng_state
from train.progress import RunLog

ROOT = Path(__file__).parents[2]


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.pt"
    assert load_state(path) is None
    state = {
        "step": 3,
        "big": 1 << 127,
        "none": None,
        "nested": {"list": [1, 2.5, "x"], "pair": (True, {"a": torch.arange(5)})},
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    }
    save_state(path, state)
    found = load_state(path)
    assert found is not None and found.keys() == state.keys()
    assert found["nested"]["list"] == [1, 2.5, "x"] and found["big"] == 1 << 127
    torch.testing.assert_close(found["nested"]["pair"][1]["a"], torch.arange(5))
    torch.testing.assert_close(found["half"], state["half"], equal_nan=True)
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_a_failed_save_leaves_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_state(path, {"step": 2, "bad": lambda: None})
    assert load_state(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("kind", ["empty", "cut", "text", "code"])
def test_a_file_that_is_no_state_is_refused_unread(tmp_path: Path, kind: str) -> None:
    path, mark = tmp_path / "state.pt", tmp_path / "ran"
    save_state(path, {"weights": torch.ones(100)})
    if kind == "code":
        torch.save(_Writes(str(mark)), path)
    else:
        data = {"empty": b"", "cut": path.read_bytes()[:-200], "text": b"hello"}[kind]
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state\.pt: not a training state"):
        load_state(path)
    assert not mark.exists()


class _Writes:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (self.path, os.O_CREAT)


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[float]:
        numbers = [float(torch.rand(1)), float(np.random.normal()), random.random()]
        return [*numbers, random.gauss(0, 1), float(np.random.rand())]

    draw()
    random.gauss(0, 1)  # numpy and Python keep every second of these for later
    save_state(tmp_path / "state.pt", {"rng": rng_state()})
    expected = [draw() for _ in range(3)]
    state = load_state(tmp_path / "state.pt")
    assert state is not None
    set_rng_state(state["rng"])
    assert [draw() for _ in range(3)] == expected


def test_metrics_after_the_state_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with RunLog(tmp_path, "sft", total=3, done=2) as log:
        assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
        log.write({"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def same(a: object, b: object) -> bool:
    """Whether two states hold the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))  # type: ignore[arg-type]
    return a == b


def test_a_killed_run_ends_as_one_that_was_not(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """SIGKILL in a step, in a save, right after it, and from outside: see `killed_runs`."""
    command = [sys.executable, "-m", "tests.train.killed_runs", str(tiny_checkpoint), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    states = [load_state(d / "sft.pt") for d in (whole, killed)]
    assert states[0] is not None and states[0]["step"] == 6
    assert same(*states)
    weights = [(d / "checkpoint" / "model.safetensors").read_bytes() for d in (whole, killed)]
    assert weights[0] == weights[1]
    stories = [(d / "sft.jsonl").read_text().splitlines() for d in (whole, killed)]
    timed = ("seconds", "tok_s")
    told = [
        [{k: v for k, v in json.loads(x).items() if k not in timed} for x in s] for s in stories
    ]
    assert told[0] == told[1] and [line["step"] for line in told[0]] == [1, 2, 3, 4, 5, 6]
    assert not list(killed.glob("*.part"))


@pytest.mark.parametrize("limit", [1000, 100_000])
def test_a_full_disk_is_told_and_leaves_the_older_state(tmp_path: Path, limit: int) -> None:
    """In a process of its own whose files may have `limit` bytes: it stands for a full disk."""
    code = f"""
import resource, signal, sys, torch
from train.checkpointing import load_state, save_state
from train.journal import Journal
from la_trt.errors import MachineError
save_state(sys.argv[1], {{"step": 1}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    save_state(sys.argv[1], {{"step": 2, "w": torch.zeros(300_000)}})
except MachineError as error:
    print(error.name, error)
assert load_state(sys.argv[1]) == {{"step": 1}}
with Journal(__import__("pathlib").Path(sys.argv[1] + ".part"), {{}}) as journal:
    try:
        journal.append({{"text": "x" * 200_000}})
    except MachineError as error:
        print(error.name, error)
"""
    path = tmp_path / "state.pt"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    for written in (path, tmp_path / "state.pt.part"):
        assert f"E_WRITE {written}: cannot be written (File too large)" in done.stdout
