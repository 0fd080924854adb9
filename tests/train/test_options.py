"""The help of the training commands: every setting explained, and the presets' values shown."""

from __future__ import annotations

from dataclasses import fields

import click
import pytest

from train import attention, brpo, coldstart, distill, planting, pretrain, sft, tiny
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
