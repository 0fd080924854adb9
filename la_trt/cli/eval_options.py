"""The flags of `la-trt eval` that say which questions are asked."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from la_trt.cli.options import PATH
from la_trt.errors import UsageError

if TYPE_CHECKING:
    from la_trt.eval.lookworld import EvalConfig

F = TypeVar("F", bound=Callable[..., Any])

SUITES = ("lookworld", "pope", "chair", "mme", "mmstar", "mmbench", "mmmu", "mathvision")
SPLITS = ("test", "test-inverted", "validation")
# Flag -> field of WorldConfig.
WORLD_FLAGS = {
    "prior_strength": (float, "Share of objects whose colour follows their shape, 0 to 1."),
    "clutter": (float, "0: plain background, 1: eight faint strokes."),
    "min_objects": (int, "Objects of a scene, at least."),
    "max_objects": (int, "Objects of a scene, at most 10."),
    "digit_frac": (float, "Share of the large objects that carry a digit, 0 to 1."),
    "reasoning_length": (
        int,
        "Dial of the answers that a model learnt from; written into the report, changes no "
        "question.",
    ),
}
_SUITE_OF = {
    "synonyms": ("chair",),
    "circular": ("mmbench",),
    **dict.fromkeys((*WORLD_FLAGS, "image_size", "split", "families"), ("lookworld",)),
    "num_per_family": ("lookworld",),
    "data": SUITES[1:],
    "images": SUITES[1:],
}
_LARGE = 64 << 20
_END = 8 << 20


def data_options(function: F) -> F:
    """Which suite, from which files, and how much of it."""
    return _add(
        function,
        click.option("--suite", type=click.Choice(SUITES), help="What is asked; needed."),
        click.option(
            "--data",
            type=PATH,
            metavar="PATH",
            help="The suite's published file, or a directory of them (lookworld draws its own).",
        ),
        click.option(
            "--images",
            type=PATH,
            metavar="DIR",
            help="What image names are relative to.  [default: the directory of --data]",
        ),
        click.option(
            "--instruction",
            metavar="TEXT",
            help="Stands after every question, in place of the suite's own.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            metavar="N",
            help="Questions (image pairs in mme), taken in turn from every category; the report is "
            "of these alone.  [default: all]",
        ),
    )


def suite_options(function: F) -> F:
    """What single suites take."""
    from la_trt.lookworld.config import FAMILIES

    dials = [
        click.option(
            f"--{name.replace('_', '-')}",
            type=kind,
            metavar="X" if kind is float else "N",
            help=f"lookworld: {text}  [default: the world's]",
        )
        for name, (kind, text) in WORLD_FLAGS.items()
    ]
    return _add(
        function,
        click.option(
            "--split",
            type=click.Choice(SPLITS),
            default="test",
            help="lookworld: test has the prior of the training scenes, test-inverted turns it "
            "around.",
        ),
        click.option(
            "--num-per-family",
            type=click.IntRange(min=1),
            default=30,
            metavar="N",
            help="lookworld: questions of each family.",
        ),
        click.option(
            "--family",
            "families",
            type=click.Choice(FAMILIES),
            multiple=True,
            help="lookworld: ask this family; repeatable.  [default: all]",
        ),
        click.option(
            "--image-size",
            metavar="WxH",
            help="lookworld: pixels of a scene, multiples of 28.  [default: 224x224]",
        ),
        *dials,
        click.option(
            "--circular/--no-circular",
            default=True,
            help="mmbench: ask once for every rotation of the options, all must be right.",
        ),
        click.option(
            "--synonyms",
            type=PATH,
            metavar="FILE",
            help="chair: words for each category, one category a line: name, synonym, synonym.  "
            "[default: a small table of our own]",
        ),
    )


def _add(function: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def refuse_flags(ctx: click.Context) -> None:
    """Nothing; raises UsageError where flags of an evaluation stand before a subcommand."""
    for parameter in ctx.command.params:
        assert parameter.name is not None
        source = ctx.get_parameter_source(parameter.name)
        if source is click.core.ParameterSource.COMMANDLINE and parameter.expose_value:
            raise UsageError(
                f"{parameter.opts[0]} has no effect on la-trt eval {ctx.invoked_subcommand}\n"
                f"flags of {ctx.invoked_subcommand} stand after its name"
            )


def check_flags(ctx: click.Context) -> None:
    """Nothing; raises UsageError where a flag is lacking or belongs to another suite."""
    suite = ctx.params["suite"]
    if suite is None:
        raise UsageError(f"--suite is missing\ngive one of {', '.join(SUITES)}")
    if ctx.params["output"] is None:
        raise UsageError("--output is missing\nname a directory for answers and reports")
    for name, suites in _SUITE_OF.items():
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and suite not in suites:
            flag = next(p.opts[0] for p in ctx.command.params if p.name == name)
            raise UsageError(
                f"{flag} has no effect on the suite {suite}\nit belongs to {', '.join(suites)}"
            )
    if suite != "lookworld" and ctx.params["data"] is None:
        raise UsageError(
            f"--data is missing: the suite {suite} is read from a file\n"
            f"name the published file of {suite}"
        )


def world_of(flags: dict[str, Any]) -> EvalConfig:
    """The questions of LookWorld that the flags ask for. Raises UsageError."""
    from la_trt.eval.lookworld import EvalConfig
    from la_trt.lookworld.config import FAMILIES

    config = EvalConfig()
    if flags["reasoning_length"] is not None:
        warnings.warn(
            "--reasoning-length is written into the report; it changes no question", stacklevel=2
        )
    dials = {name: flags[name] for name in WORLD_FLAGS if flags[name] is not None}
    if flags["image_size"] is not None:
        size = re.fullmatch(r"(\d{1,4})x(\d{1,4})", flags["image_size"])
        if size is None:
            raise UsageError(f"--image-size {flags['image_size']}: expected such as 224x224")
        dials["sizes"] = ((int(size[1]), int(size[2])),)
    return replace(
        config,
        split=flags["split"],
        num_per_family=flags["num_per_family"],
        families=tuple(f for f in FAMILIES if f in flags["families"]) or FAMILIES,
        world=replace(config.world, **dials),
    )


def fingerprint(path: Path) -> str:
    """A sha256 that tells a model (or file) from another, whatever its name.

    Of names, sizes and contents; of a file above 64 MiB, its first and last 8 MiB. A bundle is
    its bundle.json, which holds the hashes of all its files.
    """
    if (path / "bundle.json").is_file():
        path = path / "bundle.json"
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _LARGE:
                digest.update(stream.read())
            else:
                digest.update(stream.read(_END))
                stream.seek(-_END, 2)
                digest.update(stream.read())
    return digest.hexdigest()
