"""The help of the training commands: every setting explained, and the presets' values shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import click
import pytest

from la_trt.errors import UsageError
from train import (
    attention,
    brpo,
    coldstart,
    distill,
    planting,
    presets_brpo,
    presets_sft,
    pretrain,
    sft,
    tiny,
    trainee,
)
from train.command import run
from train.rewards import RewardConfig
from train.rollout import RolloutConfig
from train.setting_help import _COMMON, _OWN

COMMANDS = {m.__name__: m.main for m in (
    attention, brpo, coldstart, distill, planting, pretrain, sft, tiny
)}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    options = [p for p in COMMANDS[name].params if isinstance(p, click.Option)]
    assert len(options) > 4
    assert [p.opts[0] for p in options if not p.help] == []


def test_every_text_belongs_to_a_setting() -> None:
    shown = {p.help for command in COMMANDS.values() for p in command.params}  # type: ignore[attr-defined]
    texts = [*_COMMON.values(), *(text for own in _OWN.values() for text in own.values())]
    assert [t for t in texts if not any(help and help.startswith(t) for help in shown)] == []


def test_help_shows_the_values_of_the_presets() -> None:
    shown = {p.name: p.help or "" for p in sft.main.params if isinstance(p, click.Option)}
    low, high = sft.PRESETS["paper-7b"], sft.PRESETS["lookworld-tiny"]
    assert low.optim.lr != high.optim.lr and low.look == high.look
    assert f"[paper-7b: {low.optim.lr:g}, lookworld-tiny: {high.optim.lr:g}]" in shown["lr"]
    for field in fields(low.look):
        value = getattr(low.look, field.name)
        shows = f"{value:g}" if isinstance(value, float) else str(value)
        assert shown[field.name].endswith(f"[default: {shows}]")


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("train.distill", "--on-reject", "keep"),
        ("train.planting", "--split", "tests"),
        ("train.attention", "--inject", "kvs"),
        ("train.coldstart", "--reattention", "route"),
    ],
)
def test_a_value_that_is_no_choice_is_refused_with_the_choices(
    name: str, flag: str, value: str
) -> None:
    with pytest.raises(click.BadParameter, match="is not one of"):
        COMMANDS[name].main([flag, value, "--output", "x"], standalone_mode=False)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (trainee.OptimConfig, {"lr": nan}),
        (trainee.OptimConfig, {"lr": -1.0}),
        (trainee.OptimConfig, {"lr": inf}),
        (trainee.OptimConfig, {"beta1": 1.0}),
        (trainee.OptimConfig, {"beta2": -0.1}),
        (trainee.OptimConfig, {"eps": -1.0}),
        (trainee.OptimConfig, {"weight_decay": nan}),
        (trainee.OptimConfig, {"warmup_frac": 1.5}),
        (trainee.OptimConfig, {"decay_frac": nan}),
        (trainee.OptimConfig, {"max_norm": 0.0}),
        (presets_sft.RunConfig, {"steps": -3}),
        (presets_sft.RunConfig, {"epochs": 0}),
        (presets_sft.RunConfig, {"save_every": 0}),
        (presets_sft.RunConfig, {"seed": -1}),
        (presets_sft.RunConfig, {"seed": 1 << 32}),
        (presets_sft.DataConfig, {"global_batch": 0}),
        (presets_sft.DataConfig, {"micro_batch": 0}),
        (presets_sft.DataConfig, {"max_pixels": -5}),
        (presets_brpo.RunConfig, {"steps": 0}),
        (presets_brpo.RunConfig, {"save_every": 0}),
        (presets_brpo.RunConfig, {"validate_every": -1}),
        (presets_brpo.RunConfig, {"seed": -1}),
        (presets_brpo.ObjectiveConfig, {"clip": -0.2}),
        (presets_brpo.ObjectiveConfig, {"clip": nan}),
        (presets_brpo.ObjectiveConfig, {"clip_high": -2.0}),
        (presets_brpo.ObjectiveConfig, {"beta": -0.1}),
        (presets_brpo.ObjectiveConfig, {"beta": nan}),
        (presets_brpo.OptimConfig, {"lr": nan}),
        (presets_brpo.OptimConfig, {"beta1": 2.0}),
        (presets_brpo.OptimConfig, {"warmup_frac": nan}),
        (presets_brpo.OptimConfig, {"decay_frac": -1.0}),
        (presets_brpo.OptimConfig, {"max_norm": nan}),
        (RewardConfig, {"accuracy_weight": nan}),
        (RewardConfig, {"balance_floor": -inf}),
        (RewardConfig, {"no_reflection": inf}),
        (RewardConfig, {"ideal_length": inf}),
        (RolloutConfig, {"max_pixels": -1}),
        (coldstart.ColdStartConfig, {"save_every": 0}),
        (coldstart.ColdStartConfig, {"lr": nan}),
        (pretrain.PretrainConfig, {"save_every": 0}),
        (pretrain.PretrainConfig, {"digit_frac": 2.0}),
        (distill.DistillConfig, {"seed": -1}),
        (distill.DistillConfig, {"reasoning_length": 9}),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_name(
    config: Callable[..., Any], values: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(values))}: expected"):
        config(**values)


def test_limits_of_the_ranges_are_allowed() -> None:
    trainee.OptimConfig(lr=0.0, beta1=0.0, warmup_frac=1.0, decay_frac=1.0, max_norm=inf)
    presets_brpo.ObjectiveConfig(clip=inf, clip_high=None, beta=0.0)
    RewardConfig(accuracy_weight=-1.0, balance_floor=None)


@pytest.mark.parametrize("command", [sft.main, brpo.main])
@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--device", "quantum"], 2, "--device: expected a name of PyTorch's"),
        (["--device", "cuda"], 5, "error[E_DEVICE]: --device cuda"),
        (["--world", "sizes=3"], 2, "world.sizes: expected tuple"),
        (["--world", "sizes=[[84]]"], 2, "sizes: expected whole numbers (width, height)"),
        (["--world", "min_objects=3.5"], 2, "world.min_objects: expected int"),
        (["--world", "clutter=true"], 2, "world.clutter: expected float"),
        (["--world", 'family_weights=["a"]'], 2, "family_weights: expected 10 numbers"),
        (["--save-every", "0"], 2, "save_every: expected at least 1"),
    ],
)
def test_what_cannot_be_run_ends_with_a_message(
    command: click.Command,
    flags: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(run(command, ["--ckpt", str(tmp_path), "--output", str(output), *flags]))
    said = capsys.readouterr().err
    assert ended.value.code == code and message in said and "Traceback" not in said
    assert not output.exists()


def test_a_bug_ends_with_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    command = click.Command("broken", callback=partial(divmod, 1, 0))
    assert run(command, []) == 70
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said and said.rstrip().splitlines()[-1].startswith(
        "la-trt: error[E_INTERNAL]"
    )
