"""Re-attention policies as data: trigger x select x inject x limits.

A policy is a value. The session interprets it; a new published method is a new value here
(a trigger, a way to select), never a new decoding loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from la_trt.errors import UsageError
from la_trt.events import InjectKind, SelectKind

TriggerKind = Literal["reflection", "every", "entropy", "none"]
PRESETS = ("copy", "route", "text", "vision", "never", "random")
MAX_POLICY_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """When visual tokens are put in: always right before a generated token's forward pass.

    `reflection`: before each generated `<REFLECTION>`. `every`: before generated token
    number n, 2n, ... (`every_tokens`). `entropy`: before a token drawn from a distribution
    of more than `entropy_nats`, at least `min_gap` tokens after the previous injection.
    """

    kind: TriggerKind = "reflection"
    every_tokens: int = 64
    entropy_nats: float = 2.0
    min_gap: int = 16

    def __post_init__(self) -> None:
        _choice("trigger.kind", self.kind, get_args(TriggerKind))
        _integer("trigger.every_tokens", self.every_tokens, low=1)
        _number("trigger.entropy_nats", self.entropy_nats, low=0.0)
        _integer("trigger.min_gap", self.min_gap, low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Which visual tokens: `all`, the `percent` best by mean mass (`route`, equation 5 of
    the paper), or the same number drawn at random (`random`, the control)."""

    kind: SelectKind = "all"
    percent: float = 50.0

    def __post_init__(self) -> None:
        _choice("select.kind", self.kind, get_args(SelectKind))
        _number("select.percent", self.percent, low=0.0, high=100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A whole policy.

    `inject`: `embed` runs the visual embeddings through the decoder again, `kv` appends
    rotated copies of their cached keys and values. `max_reflections`: injections at most;
    the triggers after that are skipped and reported, decoding goes on.
    `close_at_once`: `</REFLECTION>` is forced right after `<REFLECTION>` (vision-only).
    `allow_reflection` False: the logit of `<REFLECTION>` is masked, so the model cannot
    generate it (the paper's baseline without reflection).
    """

    name: str
    trigger: Trigger = field(default_factory=Trigger)
    select: Select = field(default_factory=Select)
    inject: InjectKind = "embed"
    max_reflections: int = 8
    close_at_once: bool = False
    allow_reflection: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 100:
            raise UsageError(
                f"policy.name: expected 1 to 100 characters, got {_shown(self.name)}",
                name="E_POLICY",
            )
        _choice("inject", self.inject, get_args(InjectKind))
        _integer("max_reflections", self.max_reflections, low=0)
        for key in ("close_at_once", "allow_reflection"):
            if not isinstance(getattr(self, key), bool):
                raise UsageError(
                    f"policy.{key}: expected true or false, got {_shown(getattr(self, key))}",
                    name="E_POLICY",
                )

    @property
    def injects(self) -> bool:
        """Whether this policy can put anything into the context."""
        return self.trigger.kind != "none" and (
            self.allow_reflection or self.trigger.kind != "reflection"
        )

    @property
    def needs_mass(self) -> bool:
        """Whether selecting needs the visual mass of the generated tokens."""
        return self.injects and self.select.kind == "route"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `policy_from_dict` reads back to an equal policy."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        out["trigger"] = {f.name: getattr(self.trigger, f.name) for f in fields(Trigger)}
        out["select"] = {f.name: getattr(self.select, f.name) for f in fields(Select)}
        return out


def preset(name: str) -> Policy:
    """The preset `copy`, `route`, `text`, `vision`, `never` or `random`."""
    none = Trigger(kind="none")
    presets = {
        "copy": Policy(name="copy"),
        "route": Policy(name="route", select=Select(kind="route")),
        "text": Policy(name="text", trigger=none),
        "vision": Policy(name="vision", close_at_once=True),
        "never": Policy(name="never", trigger=none, allow_reflection=False),
        "random": Policy(name="random", select=Select(kind="random")),
    }
    if name not in presets:
        raise UsageError(
            f"policy {name!r} is unknown\nuse one of {', '.join(PRESETS)}, or a .yaml file",
            name="E_POLICY",
        )
    return presets[name]


def resolve_policy(
    spec: str | Path | Policy,
    *,
    inject: InjectKind | None = None,
    route_percent: float | None = None,
    max_reflections: int | None = None,
) -> Policy:
    """The policy of a preset's name or a YAML file, with the given settings replaced.

    Warns (UserWarning) of a setting that has no effect on that policy. Raises UsageError
    E_POLICY.
    """
    if not isinstance(spec, str | Path | Policy):
        raise UsageError(
            f"policy: expected a preset's name, a file or a Policy, got {type(spec).__name__}",
            name="E_POLICY",
        )
    if isinstance(spec, Policy):
        policy = spec
    elif isinstance(spec, Path) or Path(spec).suffix in (".yaml", ".yml"):
        policy = load_policy(Path(spec))
    else:
        policy = preset(spec)
    if route_percent is not None:
        if not policy.injects or policy.select.kind == "all":
            _no_effect("route percent", policy)
        policy = replace(policy, select=replace(policy.select, percent=route_percent))
    if inject is not None:
        if not policy.injects:
            _no_effect("inject", policy)
        policy = replace(policy, inject=inject)
    if max_reflections is not None:
        if not policy.injects:
            _no_effect("max reflections", policy)
        policy = replace(policy, max_reflections=max_reflections)
    return policy


def load_policy(path: Path) -> Policy:
    """The policy in a YAML file. Raises UsageError E_POLICY naming the file and the field."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        reason = error.strerror or "not readable"
        raise UsageError(f"policy file {path}: {reason}", name="E_POLICY") from None
    if len(data) > MAX_POLICY_BYTES:
        raise UsageError(
            f"policy file {path}: larger than {MAX_POLICY_BYTES} bytes", name="E_POLICY"
        )
    try:
        raw = yaml.safe_load(data.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"policy file {path}: not YAML ({first})", name="E_POLICY") from None
    try:
        return policy_from_dict(raw, default_name=path.stem)
    except UsageError as error:
        raise UsageError(f"policy file {path}: {error}", name="E_POLICY") from None


def policy_from_dict(raw: object, *, default_name: str = "custom") -> Policy:
    """A policy of plain values; unknown keys and wrong types are refused (UsageError)."""
    top = _mapping("policy", raw, Policy)
    parts: dict[str, Any] = {"name": default_name, **top}
    if "trigger" in top:
        parts["trigger"] = Trigger(**_mapping("trigger", top["trigger"], Trigger))
    if "select" in top:
        parts["select"] = Select(**_mapping("select", top["select"], Select))
    return Policy(**parts)


def _mapping(where: str, raw: object, kind: type) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where}: expected a mapping, got {type(raw).__name__}", name="E_POLICY")
    known = [f.name for f in fields(kind)]
    for key in raw:
        if key not in known:
            raise UsageError(
                f"{where}: unknown key {_shown(key)}, expected {', '.join(known)}",
                name="E_POLICY",
            )
    return dict(raw)


def _choice(where: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise UsageError(
            f"policy.{where}: expected one of {', '.join(choices)}, got {_shown(value)}",
            name="E_POLICY",
        )


def _integer(where: str, value: object, *, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UsageError(
            f"policy.{where}: expected an integer >= {low}, got {_shown(value)}",
            name="E_POLICY",
        )


def _number(where: str, value: object, *, low: float, high: float = 1e9) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(
            f"policy.{where}: expected a number from {low:g} to {high:g}, got {_shown(value)}",
            name="E_POLICY",
        )


def _shown(value: object) -> str:
    """A value from a file for a message: never long, whatever the file's aliases expand to."""
    scalar = isinstance(value, (str, int, float)) and not (
        isinstance(value, int) and value.bit_length() > 200
    )
    return repr(value)[:80] if scalar else type(value).__name__


def _no_effect(setting: str, policy: Policy) -> None:
    warnings.warn(f"{setting} has no effect on policy {policy.name!r}", stacklevel=3)
