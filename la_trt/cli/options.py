"""Options that several commands share, so that they are spelt and explained once."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from la_trt.cli.source import Source
from la_trt.errors import InputError
from la_trt.limits import KV_DTYPES, MAX_SPECULATE, MAX_THREADS, Limits

P = ParamSpec("P")
R = TypeVar("R")

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class _Path(click.Path):
    """A path, not empty. Whether it may be read, says who opens it: each has its own error."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not value:
            self.fail("expected a path, got an empty text", param, ctx)
        return super().convert(value, param, ctx)


class _ImagePath(_Path):
    """The path of an image."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and _URL.match(value):
            raise InputError(
                f"image {value}: URLs are not read\nsave the image and name its file",
                name="E_IMAGE_FILE",
            )
        return super().convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """Numbers of a range, infinity and NaN not among them."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


PATH, IMAGE = _Path(), _ImagePath()
IMAGE_LIMITS = {
    "max_image_bytes": "Bytes that one encoded image may have.",
    "max_image_pixels": "Pixels that one decoded image may have.",
    "max_request_pixels": "Pixels that all images together may have.",
    "max_images": "Images that one question may have.",
    "max_aspect_ratio": "Longer side of an image over its shorter side, at most.",
}
STOP_LIMITS = {
    "max_stop_strings": "Stop strings that may be given.",
    "max_stop_length": "Characters that one stop string may have.",
}
HEADER_LIMIT = {"max_safetensors_header_bytes": "Bytes that the header of a weight file may have."}


def limit_options(names: dict[str, str]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A decorator that adds a flag for each named limit; the command gets `limits=Limits(...)`."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def command(*args: Any, **kwargs: Any) -> R:
            given = {name: kwargs.pop(name) for name in names}
            return function(*args, limits=Limits(**given), **kwargs)

        defaults = Limits()
        for name, text in reversed(names.items()):
            command = click.option(
                f"--{name.replace('_', '-')}",
                type=click.IntRange(min=1),
                default=getattr(defaults, name),
                metavar="N",
                help=text,
            )(command)
        return command

    return decorate


def source_options(function: Callable[..., R]) -> Callable[..., R]:
    """Which model runs, and on what: the command gets `source=Source(...)`."""
    names = ("engine", "ckpt", "backend", "threads", "max_model_len", "kv_dtype")

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> R:
        source = Source(**{name: kwargs.pop(name) for name in names})
        return function(*args, source=source, **kwargs)

    for option in reversed(
        (
            click.option(
                "--engine",
                type=PATH,
                metavar="DIR",
                help="Bundle written by la-trt build. Without it: the shipped small model, built "
                "once into the user's cache directory.",
            ),
            click.option(
                "--ckpt",
                type=PATH,
                metavar="DIR",
                help="Checkpoint to run as it is with the torch engine, in place of --engine.",
            ),
            click.option(
                "--backend",
                type=click.Choice(["auto", "onnx", "native", "tensorrt", "torch"]),
                default="auto",
                help="Engine: onnx, native (compiled CPU kernels) and tensorrt (bundles built for "
                "this GPU; has not run on one yet) run bundles, torch runs checkpoints; auto is "
                "native for bundles where it is installed, else onnx.",
            ),
            click.option(
                "--threads",
                type=click.IntRange(min=1, max=MAX_THREADS),
                metavar="N",
                help="CPU threads of the engine.  [default: all cores]",
            ),
            click.option(
                "--max-model-len",
                type=click.IntRange(min=1),
                metavar="N",
                help="Tokens of context to make room for.  [default: the bundle's, at most 8192]",
            ),
            click.option(
                "--kv-dtype",
                type=click.Choice(KV_DTYPES),
                help="KV cache of the native engine: two bytes a number are half of float32's "
                "memory and faster behind long contexts, int8 (with a scale a row) a quarter.  "
                "[default: float32 with float32 weights, else bfloat16]",
            ),
        )
    ):
        command = option(command)
    return command


def speculate_option(function: Callable[P, R]) -> Callable[P, R]:
    """How many tokens are guessed ahead."""
    return click.option(
        "--speculate",
        type=click.IntRange(0, MAX_SPECULATE),
        default=0,
        metavar="N",
        help="Tokens to guess ahead in a step, out of this answer and earlier ones, while few "
        "sequences run; answers stay the same. 3 suits two cores. Native engine alone; 0: none.",
    )(function)


def policy_options(function: Callable[P, R]) -> Callable[P, R]:
    """How visual tokens are put in again (the policies themselves are each command's own)."""
    for option in reversed(
        (
            click.option(
                "--inject",
                type=click.Choice(["embed", "kv"]),
                help="embed: run the visual embeddings through the decoder again; kv: append "
                "their cached keys and values, rotated.  [default: embed, or the policy's]",
            ),
            click.option(
                "--route-percent",
                type=float,
                metavar="M",
                help="Share of the visual tokens that route and random put in, 0 to 100 %.  "
                "[default: 50, or the policy's]",
            ),
            click.option(
                "--max-reflections",
                type=click.IntRange(min=0),
                metavar="N",
                help="Reflections that get visual tokens, at most.  [default: 8, or the policy's]",
            ),
        )
    ):
        function = option(function)
    return function


def sampling_options(function: Callable[P, R]) -> Callable[P, R]:
    """How a token is drawn; the seed is each command's own."""
    for option in reversed(
        (
            click.option(
                "--temperature",
                type=float,
                default=0.0,
                metavar="T",
                help="0 to 100; 0: the most likely token, always.",
            ),
            click.option(
                "--top-p", type=float, default=1.0, metavar="P", help="Above 0, at most 1: off."
            ),
            click.option(
                "--top-k", type=int, default=0, metavar="K", help="0 to 2^31 - 1; 0: off."
            ),
            click.option(
                "--repetition-penalty",
                type=float,
                default=1.0,
                metavar="R",
                help="Above 0, at most 100; 1: off.",
            ),
        )
    ):
        function = option(function)
    return function
