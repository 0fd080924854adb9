"""`la-trt infer`: one question about images, answered on the terminal or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from la_trt.cli.app import debug_option
from la_trt.cli.options import (
    IMAGE,
    IMAGE_LIMITS,
    PATH,
    STOP_LIMITS,
    limit_options,
    policy_options,
    sampling_options,
    source_options,
    speculate_option,
)
from la_trt.cli.source import Source, ask
from la_trt.cli.terminal import (
    AnswerPrinter,
    check_picture,
    note,
    print_json,
    print_stats,
    quiet_drawing,
)
from la_trt.errors import GateError, UsageError
from la_trt.limits import DEFAULT_MAX_TOKENS, Limits

if TYPE_CHECKING:
    from la_trt.api import LookAgain
    from la_trt.engines.base import IntArray
    from la_trt.events import Event, Result


@click.command(name="infer")
@source_options
@speculate_option
@click.option(
    "--image",
    "images",
    type=IMAGE,
    multiple=True,
    metavar="FILE",
    help="JPEG, PNG, WebP or GIF to ask about; repeatable, the images stand in this order.",
)
@click.option("--prompt", required=True, metavar="TEXT", help="The question.")
@click.option(
    "--policy",
    default="copy",
    metavar="POLICY",
    help="What happens at <REFLECTION>: copy puts all visual tokens in again, route those most "
    "attended to, random as many at random, vision closes the reflection at once, text puts "
    "nothing in, never bars reflections; or FILE.yaml with a policy of your own.",
)
@policy_options
@click.option(
    "--max-tokens",
    type=int,
    metavar="N",
    help=f"Tokens of the answer, at most.  [default: {DEFAULT_MAX_TOKENS}, or what fits]",
)
@sampling_options
@click.option(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="0 to 2^63 - 1; the same seed, the same answer.",
)
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="Ends the answer, not part of it; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--stats", is_flag=True, help="Print counts and times on stderr afterwards.")
@click.option(
    "--heatmap",
    type=PATH,
    metavar="PNG",
    help="Draw where the answer's tokens looked: the first view beside each second look.",
)
@limit_options(IMAGE_LIMITS | STOP_LIMITS)
@debug_option
def command(
    source: Source,
    speculate: int,
    images: tuple[Path, ...],
    prompt: str,
    max_tokens: int | None,
    as_json: bool,
    stats: bool,
    heatmap: Path | None,
    limits: Limits,
    **generation: Any,
) -> None:
    """Ask a question about images.

    The answer comes on stdout as it is generated. Lines in brackets mark where visual tokens
    were put into the context again.
    """
    from la_trt.api import make_options

    source = replace(source, speculate=speculate)
    most = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    options = make_options(**generation, max_tokens=most, masses=heatmap is not None)
    options.check(limits)
    if heatmap is not None:
        check_picture(heatmap, "--heatmap", images)
        if not images:
            raise UsageError("--heatmap needs an image to draw on\ngive one with --image FILE")
    model = source.open(limits, mass=options.needs_mass)
    request, most = ask(model, images, prompt, max_tokens, default=DEFAULT_MAX_TOKENS)
    options = replace(options, max_tokens=most)
    result = _answer(model.session.stream(request, options), as_json=as_json)
    if as_json:
        print_json(result.to_json())
    if stats:
        sys.stdout.flush()
        print_stats(result, model.session.drafter, sys.stderr)
    if heatmap is not None:
        _draw(heatmap, model, result, images, request.image_grid_thw, heading=prompt)
    if result.finish_reason == "length" and not as_json:
        sys.stdout.flush()
        print(
            f"la-trt: the answer was cut off at {len(result.tokens)} tokens (--max-tokens)",
            file=sys.stderr,
        )
    if result.finish_reason == "numerical_error":
        raise GateError(
            "the model's numbers were not finite, the answer ends there\n"
            "build the bundle again, with --quant none",
            name="E_NUMERICAL",
        )


def _draw(
    path: Path,
    model: LookAgain,
    result: Result,
    images: tuple[Path, ...],
    image_grid_thw: IntArray,
    *,
    heading: str,
) -> None:
    quiet_drawing()
    from la_trt.report.heatmap import save_result_heatmap

    save_result_heatmap(
        path,
        result,
        model.processor.load(list(images)),
        image_grid_thw,
        model.processor.vocabulary,
        merge_size=model.engine.config.vision.spatial_merge_size,
        heading=f"{heading}  (policy {result.policy})",
    )
    note(f"heat map: {path}")


def _answer(events: Iterator[Event], *, as_json: bool) -> Result:
    """The result at the end of the events, each shown as it comes unless `as_json`."""
    from la_trt.events import DoneEvent

    printer = None if as_json else AnswerPrinter(sys.stdout)
    try:
        for event in events:
            if isinstance(event, DoneEvent):
                return event.result
            if printer is not None:
                printer.show(event)
    except OSError:
        printer = None  # it is stdout that fails
        raise
    finally:
        if printer is not None:
            printer.finish()
    raise AssertionError("a session that ends without a result")
