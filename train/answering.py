"""The model that a command asks: a checkpoint on PyTorch, or a bundle, which answers faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from la_trt.api import LookAgain
from la_trt.errors import UsageError


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
