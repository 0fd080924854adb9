"""BRPO as a whole: it learns, it goes on bit for bit after SIGKILL, two processes are as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from la_trt.errors import MachineError, UsageError
from la_trt.files.checkpoint import open_checkpoint
from la_trt.lookworld import WorldConfig
from la_trt.model.weights import load_model
from tests.tiny import write_tiny_checkpoint
from tests.train.two_processes import start
from train.board import Board
from train.brpo import Trainer, brpo, main
from train.coldstart import training_world
from train.command import run
from train.options import with_settings
from train.presets_brpo import (
    PRESETS,
    BrpoConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
)
from train.rewards import RewardConfig, Rewards
from train.rollout import RolloutConfig

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "rollout_s", "train_s", "tok_s")
TRIAL = BrpoConfig(
    run=RunConfig(steps=4, save_every=1, tensorboard="off"),
    rollout=RolloutConfig(
        questions=2, group_size=4, max_completion=9, max_length=300, max_pixels=84 * 84, batch=8
    ),
    reward=RewardConfig(truncated="keep", ideal_length=2.0),
    optim=OptimConfig(micro_batch=3, accumulation=2, epochs=2, lr=1e-2, dtype="float32"),
)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("brpo") / "ckpt")


def judge(text: str, answer: str, **_: Any) -> Rewards:
    """A reward that a random model can earn: the share of the letters before n."""
    letters = [c for c in text.lower() if c.isascii() and c.isalpha()]
    share = sum(c < "n" for c in letters) / max(1, len(letters))
    return Rewards(accuracy=share, format=0.0, balance=0.0, total=share)


@pytest.fixture
def rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.rollout.reward_answer", judge)


def metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of the log without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "brpo.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def weights(output: Path) -> dict[str, torch.Tensor]:
    state = torch.load(output / "brpo.pt", weights_only=True)["actor"]
    if "model" in state:
        return {name.replace("vlm.", "model."): v for name, v in state["model"].items()}
    adamw = state["weights"]["adamw"]["state"]
    moments = {f"{i}.{k}": v for i, s in adamw.items() for k, v in s.items()}
    return state["weights"]["masters"] | moments


@pytest.mark.usefixtures("rewarded")
def test_it_learns_what_is_rewarded_and_leaves_the_rest(ckpt: Path, tmp_path: Path) -> None:
    config = replace(
        TRIAL,
        run=replace(TRIAL.run, steps=12),
        rollout=replace(TRIAL.rollout, group_size=8),
        objective=ObjectiveConfig(beta=0.01),
        optim=replace(TRIAL.optim, micro_batch=16, accumulation=1, epochs=1, lr=3e-2),
    )
    trainer = Trainer(config, ckpt, tmp_path)
    steps = [trainer.train_step() for _ in range(12)]
    assert sum(s["reward"] for s in steps[-3:]) > sum(s["reward"] for s in steps[:3]) + 0.3
    first = steps[0]
    # one update on its own answers: no ratio but 1, nothing clipped, no distance yet
    assert first["ratio"] == pytest.approx(1.0, abs=1e-6) and first["clip_frac"] == 0.0
    assert first["kl"] == pytest.approx(0.0, abs=1e-6) and steps[-1]["kl"] > 1e-3
    assert first["entropy"] > steps[-1]["entropy"] > 0
    assert all(s["engine_gap"] < 1e-4 for s in steps)
    before, after = load_model(ckpt).state_dict(), trainer.actor.model.state_dict()
    for name, value in after.items():
        assert torch.equal(before[name], value) == name.startswith("visual."), name
        assert trainer.reference is not None
        assert torch.equal(before[name], trainer.reference.state_dict()[name])


CHILD = """
import os, signal, sys
from pathlib import Path
import train.brpo, train.checkpointing, train.rollout
from tests.train.test_brpo import TRIAL, judge

train.rollout.reward_answer = judge
where, ckpt, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
calls = {"draw": 0, "save": 0}
draw, save = train.rollout.roll_out, train.checkpointing.torch.save

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def drawing(*given, **more):
    answers = draw(*given, **more)
    calls["draw"] += 1
    if where == "drawing" and calls["draw"] == 3:
        die()
    return answers

def saving(state, file):
    import io
    whole = io.BytesIO()
    save(state, whole)
    calls["save"] += 1
    if where == "saving" and calls["save"] == 2:
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()
    file.write(whole.getvalue())

train.brpo.roll_out = drawing
train.checkpointing.torch.save = saving
train.brpo.brpo(train.brpo.Trainer(TRIAL, ckpt, output))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("rewarded")
def test_killed_runs_end_bit_for_bit_like_undisturbed_ones(ckpt: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    brpo(Trainer(TRIAL, ckpt, whole))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # in the third step's rollouts, two being recorded; then halfway through the second save of
    # what goes on from there, its metrics being written already
    for where, recorded, logged in (("drawing", 2, 2), ("saving", 3, 4)):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, where, str(ckpt), str(broken)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert torch.load(broken / "brpo.pt", weights_only=True)["step"] == recorded
        assert len(metrics(broken)) == logged
    with (broken / "brpo.jsonl").open("a") as file:
        file.write('{"seconds": 1.0, "st')  # a line cut off
    trainer = Trainer(TRIAL, ckpt, broken)
    assert trainer.step == 3
    brpo(trainer)
    assert metrics(broken) == metrics(whole)
    expected, found = weights(whole), weights(broken)
    assert expected.keys() == found.keys() and len(expected) > 20
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    exported = (tmp_path / run / "checkpoint" / "model.safetensors" for run in ("whole", "broken"))
    assert len({path.read_bytes() for path in exported}) == 1
    assert not [p for p in broken.iterdir() if p.name.startswith(".")], "left over"


def test_a_finished_run_does_nothing_more(ckpt: Path, tmp_path: Path) -> None:
    config = replace(TRIAL, run=replace(TRIAL.run, steps=1))
    directory = brpo(Trainer(config, ckpt, tmp_path))
    assert open_checkpoint(directory).config == open_checkpoint(ckpt).config
    before = metrics(tmp_path)
    trainer = Trainer(config, ckpt, tmp_path)
    trainer.train_step = None  # type: ignore[assignment]
    brpo(trainer)
    assert metrics(tmp_path) == before


def test_a_run_goes_on_with_its_own_settings_only(ckpt: Path, tmp_path: Path) -> None:
    trainer = Trainer(TRIAL, ckpt, tmp_path / "run")
    trainer.save()
    more = replace(TRIAL, run=replace(TRIAL.run, steps=9, save_every=3))
    Trainer(more, ckpt, tmp_path / "run")
    other = replace(TRIAL, objective=ObjectiveConfig(beta=0.2))
    with pytest.raises(UsageError, match=r"was begun with beta 0\.1, now 0\.2\n"):
        Trainer(other, ckpt, tmp_path / "run")
    changed = write_tiny_checkpoint(tmp_path / "changed", seed=1)
    with pytest.raises(UsageError, match=r"begun with --ckpt \w+, now \w+\n"):
        Trainer(TRIAL, changed, tmp_path / "run")
    elsewhere = replace(training_world(), clutter=0.5)
    with pytest.raises(UsageError, match=r"begun with --data lookworld .*, now lookworld "):
        Trainer(TRIAL, ckpt, tmp_path / "run", world=elsewhere)
    state = torch.load(trainer.path, weights_only=True)
    state["config"]["objective"]["gone"] = 3
    torch.save(state, trainer.path)
    with pytest.raises(UsageError, match="begun with gone 3, now None\n"):
        Trainer(TRIAL, ckpt, tmp_path / "run")


def test_validation_asks_about_the_world_that_was_learnt(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, asked = replace(training_world(), clutter=0.5), []

    def scores(directory: Path, num: int, policy: str, world: WorldConfig) -> dict[str, Any]:
        asked.append((num, policy, world))
        return {"validation": {"all": 50.0}}

    monkeypatch.setattr("train.brpo.quick_scores", scores)
    config = replace(TRIAL, run=replace(TRIAL.run, steps=1, validate_every=1, num_validation=20))
    brpo(Trainer(config, ckpt, tmp_path, world=world))
    assert asked == [(20, TRIAL.rollout.policy, world)]
    assert {"step": 1, "validation": {"all": 50.0}}.items() <= metrics(tmp_path)[-1].items()


def test_answers_left_out_leave_the_weights_alone(ckpt: Path, tmp_path: Path) -> None:
    config = replace(
        TRIAL,
        rollout=replace(TRIAL.rollout, max_completion=2),
        reward=replace(TRIAL.reward, truncated="mask"),
    )
    trainer = Trainer(config, ckpt, tmp_path)
    found = trainer.train_step()
    assert found["left_out_frac"] == 1.0 and "loss" not in found
    before = load_model(ckpt).state_dict()
    assert all(torch.equal(before[n], v) for n, v in trainer.actor.model.state_dict().items())


@pytest.mark.usefixtures("rewarded")
@pytest.mark.parametrize("mean", ["answer", "token"])
def test_accumulation_does_not_change_an_update(ckpt: Path, tmp_path: Path, mean: str) -> None:
    found = []
    for micro, accumulation in ((8, 1), (3, 3)):
        config = replace(
            TRIAL,
            objective=ObjectiveConfig(mean=mean),  # type: ignore[arg-type]
            optim=replace(TRIAL.optim, micro_batch=micro, accumulation=accumulation, epochs=1),
        )
        trainer = Trainer(config, ckpt, tmp_path / str(micro))
        step = trainer.train_step()
        found.append((step["norm"], step["loss"], step["entropy"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)


@pytest.mark.usefixtures("rewarded")
@pytest.mark.parametrize("inject", ["embed", "kv"])
def test_looking_again_in_rollouts_is_an_option(ckpt: Path, tmp_path: Path, inject: str) -> None:
    policy = tmp_path / "often.yaml"
    policy.write_text(f"trigger: {{kind: every, every_tokens: 3}}\ninject: {inject}\n")
    config = replace(TRIAL, rollout=replace(TRIAL.rollout, policy=str(policy)))
    step = Trainer(config, ckpt, tmp_path).train_step()
    assert step["injected_tokens"] > 9 and step["engine_gap"] < 1e-4 and step["norm"] > 0


@pytest.mark.usefixtures("rewarded")
def test_bfloat16_and_trained_tower(ckpt: Path, tmp_path: Path) -> None:
    optim = replace(TRIAL.optim, dtype="bfloat16", train_vision=True, recompute=True)
    trainer = Trainer(replace(TRIAL, optim=optim), ckpt, tmp_path)
    step = trainer.train_step()
    assert step["engine_gap"] < 0.2 and step["norm"] > 0
    before = load_model(ckpt).state_dict()
    for name, master in trainer.actor.weights.masters.items():
        assert not torch.equal(master, before[name.removeprefix("model.")]), name
    assert trainer.actor.model.model.norm.weight.dtype == torch.bfloat16


def launch(num: int, ckpt: Path, output: Path, *options: str) -> tuple[str, str]:
    """What the processes said on stdout and on stderr."""
    paths = ["--ckpt", str(ckpt), "--output", str(output)]
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num)]
    done = subprocess.run(
        [sys.executable, *program, "-m", "train.brpo", *paths, *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


SETTINGS = {
    "steps": 2,
    "group-size": 4,
    "max-completion": 9,
    "max-length": 300,
    "max-pixels": 7056,
    "lr": 0.01,
    "truncated": "keep",
    "no-reflection": 0,
    "tensorboard": "off",
    "validate-every": 0,
    "micro-batch": 8,
}
OPTIONS = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def alone(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that holds everything."""
    output = tmp_path_factory.mktemp("alone")
    paths = ["--ckpt", str(ckpt), "--output", str(output)]
    assert run(main, [*paths, *OPTIONS, "--questions", "2"]) == 0
    return output


def assert_same_run(one: Path, other: Path) -> None:
    for a, b in zip(metrics(one), metrics(other), strict=True):
        for name in ("reward", "loss", "kl", "norm", "response_tokens", "reflections", "entropy"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name
    ours, theirs = weights(one), weights(other)
    shared = [name for name in theirs if name in ours]
    assert len(shared) > 20
    for name in shared:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["--no-shard", "--shard"])
def test_two_processes_learn_as_one(ckpt: Path, tmp_path: Path, alone: Path, shard: str) -> None:
    out, err = launch(2, ckpt, tmp_path, *OPTIONS, "--questions", "1", shard)
    assert out == f"{tmp_path / 'checkpoint'}\n" and err.count('"preset"') == 1
    assert_same_run(alone, tmp_path)
    saved = load_model(tmp_path / "checkpoint").state_dict()
    torch.testing.assert_close(
        saved, load_model(alone / "checkpoint").state_dict(), atol=2e-2, rtol=0
    )


def test_sharded_runs_resume_bit_for_bit(ckpt: Path, tmp_path: Path) -> None:
    optim = replace(TRIAL.optim, shard=True)
    config = replace(TRIAL, run=replace(TRIAL.run, steps=2), optim=optim)
    brpo(Trainer(config, ckpt, tmp_path / "whole"))
    first = Trainer(config, ckpt, tmp_path / "parts")
    first.train_step()
    first.save()
    brpo(Trainer(config, ckpt, tmp_path / "parts"))
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert metrics(tmp_path / "whole")[1:] == metrics(tmp_path / "parts")


@pytest.fixture(scope="module")
def pairs(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of `two_brpo`."""
    directory = tmp_path_factory.mktemp("pairs")
    start("tests.train.two_brpo", ckpt, directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["live", "spread"])
def test_of_two_processes_one_reads_the_state_and_both_go_on(pairs: Path, kind: str) -> None:
    whole, again = pairs / kind / "whole", pairs / kind / "again"
    assert [path.name for path in again.glob("read-*")] == ["read-0"]
    expected, found = (torch.load(d / "brpo.pt", weights_only=True) for d in (whole, again))
    assert expected["step"] == found["step"] == 2
    assert expected["position"] == found["position"] > 0
    ours, theirs = weights(whole), weights(again)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert len(metrics(whole)) == 2 and metrics(whole)[1:] == metrics(again)


def test_command_line_saves_its_settings(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--ckpt", str(ckpt), "--output", str(tmp_path)]
    arguments = [
        *(*common, *OPTIONS, "--steps", "1", "--questions", "1", "--clip-high", "0.3"),
        *("--world", "clutter=0.5"),
    ]
    assert run(main, arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'checkpoint'}\n"
    saved = json.loads((tmp_path / "brpo_config.json").read_text())
    assert saved["preset"] == "lookworld-tiny" and saved["objective"]["clip_high"] == 0.3
    assert saved["rollout"]["group_size"] == 4 and saved["reward"]["ideal_length"] == 30.0
    assert saved["world"]["clutter"] == 0.5 and saved["world"]["reasoning_length"] == 3
    line = metrics(tmp_path)[0]
    assert {"reward_accuracy", "reward_format", "reward_balance", "kl", "clip_frac"} <= set(line)
    for flags, message in (
        (["--temperature", "0"], "error[E_USAGE]: temperature"),
        (["--group-size", "1"], "group_size: expected"),
    ):
        assert run(main, [*common, *flags]) == 2
        assert message in capsys.readouterr().err
    assert run(main, [*common, "--world", "clutter=much"]) == 2
    assert "expected name=value, the value JSON" in capsys.readouterr().err


def test_presets_hold_the_papers_values() -> None:
    paper = PRESETS["paper-7b"]
    assert (paper.optim.lr, paper.objective.beta, paper.rollout.group_size) == (1e-6, 0.1, 8)
    assert (paper.rollout.temperature, paper.optim.dtype) == (1.0, "bfloat16")
    assert (paper.optim.micro_batch, paper.optim.accumulation) == (16, 2)
    assert (paper.optim.beta1, paper.optim.beta2, paper.optim.warmup_frac) == (0.9, 0.95, 0.01)
    assert (paper.rollout.max_length, paper.rollout.max_completion) == (8192, 1024)
    assert (paper.rollout.max_pixels, paper.reward.ideal_length) == (307_200, 100.0)
    assert paper.rollout.policy == "text" and paper.updates_per_epoch == 1
    changed = with_settings(paper, {"clip_high": "none", "balance_floor": -1.0, "lr": None})
    assert changed == replace(paper, reward=replace(paper.reward, balance_floor=-1.0))


def test_tensorboard_is_optional_but_not_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Board(tmp_path, "auto").write(1, {"loss": 1.0})
    with pytest.raises(MachineError, match="pip install tensorboard"):
        Board(tmp_path, "on")

    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, directory: str, purge_step: int) -> None:
            written.append((directory, 0.0, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board = Board(tmp_path, "on", first=7)
    board.write(8, {"step": 8, "loss": 0.5, "note": "x"})
    board.close()
    assert written == [(str(tmp_path), 0.0, 7), ("loss", 0.5, 8), ("closed", 0.0, 0)]
