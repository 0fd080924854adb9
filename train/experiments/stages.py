"""Stages: one run each, named, with what it needs, and a key that says when it must run again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from la_trt.errors import UsageError

MARKER = "stage.json"
_REFERENCE = re.compile(r"\{(@?[A-Za-z0-9_.-]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One run of `python -m module arguments`.

    In the arguments `{out}` is the stage's own directory, `{@name}` an input of the plan, and
    `{name}` the directory of another stage, which must be done before. `result`: a file in the
    own directory that is there when the run is. `kind`: stages of one kind take about as long.
    `minutes`: a guess on one core, until one of the kind has been measured. `code`: modules that
    count for the version besides `module`. `keep`: small files of its directory that are the
    result as the report reads it, and are kept in the repository.
    """

    name: str
    kind: str
    module: str
    arguments: tuple[str, ...]
    result: str
    minutes: float
    code: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the stages that must be done before, each once."""
        found = [n for n in _references(self.arguments) if n != "out" and not n.startswith("@")]
        return tuple(dict.fromkeys(found))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the plan's inputs that it takes."""
        found = [n[1:] for n in _references(self.arguments) if n.startswith("@")]
        return tuple(dict.fromkeys(found))

    def command(self, places: Mapping[str, Path]) -> tuple[str, ...]:
        """The module and its arguments with every reference replaced."""

        def place(match: re.Match[str]) -> str:
            return str(places[match[1]])

        return (self.module, *(_REFERENCE.sub(place, a) for a in self.arguments))


def _references(arguments: Iterable[str]) -> list[str]:
    return [name for argument in arguments for name in _REFERENCE.findall(argument)]


def in_order(stages: Sequence[Stage], among: Sequence[Stage] = ()) -> list[Stage]:
    """The stages, each after those it needs, else in the order given.

    `among`: more stages, taken where one needs them. Raises UsageError for a name that stands
    twice, is unknown, or needs itself.
    """
    known = [*stages, *among]
    by_name = {stage.name: stage for stage in known}
    if len(by_name) != len(known):
        twice = next(s.name for s in known if sum(t.name == s.name for t in known) > 1)
        raise UsageError(f"stage {twice!r} stands twice in the plan")
    done: dict[str, Stage] = {}

    def visit(stage: Stage, path: tuple[str, ...]) -> None:
        if stage.name in path:
            raise UsageError(f"stage {stage.name!r} needs itself: {' -> '.join(path)}")
        if stage.name in done:
            return
        for name in stage.needs:
            if name not in by_name:
                raise UsageError(f"stage {stage.name!r} needs {name!r}, which is not in the plan")
            visit(by_name[name], (*path, stage.name))
        done[stage.name] = stage

    for stage in stages:
        visit(stage, ())
    return list(done.values())


def chosen(stages: Sequence[Stage], pattern: str) -> list[Stage]:
    """The stages whose name matches a regular expression as a whole, and all that they need.

    Raises UsageError where none does, or the expression is none.
    """
    try:
        wanted = {stage.name for stage in stages if re.fullmatch(pattern, stage.name)}
    except re.error as error:
        raise UsageError(f"{pattern!r}: not a regular expression ({error})") from None
    if not wanted:
        raise UsageError(f"{pattern!r}: no stage has such a name\n--dry-run shows them all")
    for stage in reversed(in_order(stages)):
        if stage.name in wanted:
            wanted.update(stage.needs)
    return [stage for stage in stages if stage.name in wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """`full`: of settings, inputs, code and what it needs. `settings`: the same without code."""

    full: str
    settings: str


def keys_of(
    stages: Sequence[Stage],
    inputs: Mapping[str, str],
    version: Callable[[Sequence[str]], str],
) -> dict[str, Keys]:
    """The keys of all stages, by name. `inputs`: digests by name; `version`: of modules' code."""
    keys: dict[str, Keys] = {}
    versions: dict[tuple[str, ...], str] = {}
    for stage in in_order(stages):
        lacking = [name for name in stage.inputs if name not in inputs]
        if lacking:
            raise UsageError(f"stage {stage.name!r}: the plan has no input {lacking[0]!r}")
        modules = (stage.module, *stage.code)
        if modules not in versions:
            versions[modules] = version(modules)
        own = [stage.module, stage.arguments, {name: inputs[name] for name in stage.inputs}]
        keys[stage.name] = Keys(
            full=_hash([*own, versions[modules], [keys[n].full for n in stage.needs]]),
            settings=_hash([*own, [keys[n].settings for n in stage.needs]]),
        )
    return keys


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What the marker of a finished stage says. `minutes`: that it took, in all its runs."""

    directory: Path
    keys: Keys
    kind: str
    minutes: float


def read_marker(directory: Path) -> Finished | None:
    """The finished run in a directory, None where there is none."""
    try:
        value = json.loads((directory / MARKER).read_bytes())
        return Finished(
            directory=directory,
            keys=Keys(full=value["key"], settings=value["settings_key"]),
            kind=value["kind"],
            minutes=float(value["minutes"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
