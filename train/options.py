"""Command-line options made from a config dataclass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from train.setting_help import setting_help

Config = TypeVar("Config", bound=Any)


def config_options(config: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds `--field-name` for every field, with the field's default."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(config)
        for field in reversed(fields(config)):
            assert field.default is not MISSING, f"{field.name}: a config field needs a default"
            command = _option(
                field.name,
                hints[field.name],
                default=field.default,
                show_default=True,
                help=setting_help(config, field.name),
            )(command)
        return command

    return decorate


def setting_options(
    config: type[Any], presets: Mapping[str, Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds an option for each field of each part of a config of dataclasses.

    None is the default of all of them: without one the preset's value holds (`with_settings`),
    which the help shows for each of `presets`. A field that may be None takes `none` for it.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for part in reversed(fields(config)):
            hints = get_type_hints(get_type_hints(config)[part.name])
            parts = {name: getattr(preset, part.name) for name, preset in presets.items()}
            for name, kind in reversed(hints.items()):
                text = f"{setting_help(config, name)}  [{_by_preset(name, parts)}]"
                command = _option(name, kind, default=None, help=text)(command)
        return command

    return decorate


def run_options(presets: Mapping[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds what a training from a checkpoint takes beside data and settings."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            (
                click.option(
                    "--ckpt",
                    type=click.Path(exists=True, path_type=Path),
                    required=True,
                    help="Checkpoint to begin with.",
                ),
                click.option(
                    "--output",
                    type=click.Path(path_type=Path),
                    required=True,
                    help="Directory of state, metrics and, in the end, the checkpoint.",
                ),
                click.option(
                    "--preset",
                    type=click.Choice(list(presets)),
                    default="lookworld-tiny",
                    show_default=True,
                    help="Values of the settings that are not given.",
                ),
                click.option(
                    "--world",
                    multiple=True,
                    help="LookWorld's dials, such as clutter=0.5, or JSON of several; repeatable.",
                ),
                click.option(
                    "--device", default="cpu", show_default=True, help="PyTorch's name of it."
                ),
            )
        ):
            command = option(command)
        return command

    return decorate


def _option(name: str, kind: Any, **more: Any) -> Callable[[Callable[..., Any]], Any]:
    """`click.option` of a field of that type."""
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", **more)
    return click.option(flag, type=_shown(kind), **more)


def _by_preset(field: str, parts: Mapping[str, Any]) -> str:
    """The values of a field in all presets' parts; one where they agree."""
    shown = {name: _plain(getattr(part, field)) for name, part in parts.items()}
    if len(set(shown.values())) == 1:
        return f"default: {next(iter(shown.values()))}"
    return ", ".join(f"{name}: {value}" for name, value in shown.items())


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(kind: Any) -> Any:
    """How a command line reads a field of that type."""
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if isinstance(kind, UnionType):
        (inner,) = set(get_args(kind)) - {NoneType}
        return _OrNone(click.types.convert_type(inner))
    return kind


class _OrNone(click.ParamType):  # type: ignore[type-arg]
    """A value of another type, or `none`."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.name = inner, f"{inner.name}|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if value == "none" else self.inner.convert(value, param, ctx)


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with the fields of its parts named in `values` replaced; None leaves one."""
    parts = {}
    for part in fields(config):
        own = getattr(config, part.name)
        hints = get_type_hints(type(own))
        given = {f.name: values[f.name] for f in fields(own) if values.get(f.name) is not None}
        unset = [n for n, v in given.items() if v == "none" and isinstance(hints[n], UnionType)]
        parts[part.name] = replace(own, **given | dict.fromkeys(unset))
    return replace(config, **parts)
