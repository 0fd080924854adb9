"""The model that a command asks, on PyTorch or, faster, from a bundle; and how it looks again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from la_trt.api import LookAgain
from la_trt.errors import UsageError

Split = Literal["train", "validation", "test", "test-inverted"]


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--ckpt`, `--engine` and `--threads`, as `open_model` takes them."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), metavar="N",
                     help="CPU threads of the engine  [all cores]"),
        click.option("--engine", type=click.Path(path_type=Path),
                     help="bundle that answers (la-trt build)"),
        click.option("--ckpt", type=click.Path(path_type=Path),
                     help="checkpoint that answers, on PyTorch"),
    ):  # fmt: skip
        command = option(command)
    return command


def policy_flags(policy: str, inject: str, route_percent: float) -> dict[str, Any]:
    """Options of `make_options`, without those that have no effect on the policy. UsageError."""
    if inject not in ("embed", "kv"):
        raise UsageError(f"inject: expected embed or kv, got {inject!r}")
    flags: dict[str, Any] = {"policy": policy}
    if policy not in ("text", "never"):
        flags["inject"] = inject
    if policy in ("route", "random"):
        flags["route_percent"] = route_percent
    return flags


def open_model(
    ckpt: Path | None, engine: Path | None, threads: int | None, batch: int
) -> LookAgain:
    """The model, `batch` sequences at a time. Raises UsageError unless just one is named."""
    options: dict[str, Any] = {"max_batch": batch}
    if threads is not None:
        options["threads"] = threads
    if ckpt is not None and engine is None:
        return LookAgain.from_checkpoint(ckpt, **options)
    if engine is not None and ckpt is None:
        return LookAgain.from_bundle(engine, **options)
    raise UsageError("expected --ckpt DIR or --engine DIR, and one of them only")
