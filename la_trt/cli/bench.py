"""`la-trt bench`: what one question costs under each policy, side by side."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from la_trt.cli.app import debug_option
from la_trt.cli.options import (
    IMAGE,
    IMAGE_LIMITS,
    PATH,
    limit_options,
    policy_options,
    source_options,
)
from la_trt.cli.source import Source, ask
from la_trt.cli.terminal import check_picture, print_json, progress_bar
from la_trt.limits import Limits

DEFAULT_MAX_TOKENS = 256


@click.command(name="bench")
@source_options
@click.option(
    "--image",
    "images",
    type=IMAGE,
    multiple=True,
    metavar="FILE",
    help="Image to ask about; repeatable.  [default: a drawn one of 224 x 224 px]",
)
@click.option(
    "--prompt", default="How many red circles are there?", metavar="TEXT", help="The question."
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("copy", "route", "text", "never"),
    metavar="POLICY",
    help="Preset or FILE.yaml; repeatable. All are measured in turn, run by run.",
)
@policy_options
@click.option(
    "--max-tokens",
    type=int,
    metavar="N",
    help=f"Tokens of an answer, at most.  [default: {DEFAULT_MAX_TOKENS}, or what fits]",
)
@click.option(
    "--fixed-length",
    is_flag=True,
    help="Generate exactly --max-tokens tokens, end tokens or not, so that policies compare.",
)
@click.option(
    "--runs", type=click.IntRange(1, 10_000), default=10, metavar="N", help="Measured runs each."
)
@click.option(
    "--warmup",
    type=click.IntRange(0, 1000),
    default=2,
    metavar="N",
    help="Runs before, unmeasured.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--plot", type=PATH, metavar="PNG", help="Draw stages and token latencies.")
@limit_options(IMAGE_LIMITS)
@debug_option
def command(
    source: Source,
    images: tuple[Path, ...],
    prompt: str,
    policies: tuple[str, ...],
    max_tokens: int | None,
    fixed_length: bool,
    runs: int,
    warmup: int,
    as_json: bool,
    plot: Path | None,
    limits: Limits,
    **settings: Any,
) -> None:
    """Measure a bundle under one or more policies.

    All run in one process, in turn, with greedy decoding. Of each number: median, p90 and p99;
    90 % and 99 % are as good as these or better. Each policy must give the same tokens in every
    run, or nothing is reported (exit code 6).
    """
    from la_trt.cli import bench_report
    from la_trt.cli.measure import measure, sample_image

    if plot is not None:
        check_picture(plot, "--plot", images)
    most = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    cases = _cases(policies, max_tokens=most, ignore_eos=fixed_length, **settings)
    model = source.open(limits, mass=any(options.needs_mass for options in cases.values()))
    shown = images or (sample_image(),)
    request, most = ask(model, shown, prompt, max_tokens, default=DEFAULT_MAX_TOKENS)
    cases = {name: replace(options, max_tokens=most) for name, options in cases.items()}
    with progress_bar("measuring") as progress:
        measured = measure(model, request, cases, runs=runs, warmup=warmup, progress=progress)
    facts = bench_report.facts(model, request, measured, runs=runs, warmup=warmup)
    if as_json:
        print_json(facts)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo(bench_report.table(facts, width))
    if plot is not None:
        bench_report.plot(plot, facts)


def _cases(policies: tuple[str, ...], **settings: Any) -> dict[str, Any]:
    """Generation options by the policy's name; a name that is taken gets a number."""
    import warnings

    from la_trt.api import make_options

    cases: dict[str, Any] = {}
    for policy in policies:
        with warnings.catch_warnings():
            # One set of flags serves all policies: where one has no effect, that is meant.
            warnings.filterwarnings("ignore", message=".* has no effect on policy")
            options = make_options(policy=policy, **settings)
        name, number = options.policy.name, 2
        while name in cases:
            name, number = f"{options.policy.name} ({number})", number + 1
        cases[name] = options
    return cases
