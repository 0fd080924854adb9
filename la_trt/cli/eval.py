"""`la-trt eval`: score a model on a suite; `la-trt eval compare`: two runs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from la_trt.cli.app import debug_option
from la_trt.cli.eval_options import (
    check_flags,
    data_options,
    refuse_flags,
    suite_options,
    world_of,
)
from la_trt.cli.eval_progress import score_bar
from la_trt.cli.options import (
    IMAGE_LIMITS,
    PATH,
    limit_options,
    policy_options,
    sampling_options,
    source_options,
)
from la_trt.cli.source import Source
from la_trt.cli.terminal import note, print_json
from la_trt.errors import GateError, InputError, UsageError
from la_trt.limits import Limits

if TYPE_CHECKING:
    from la_trt.api import LookAgain
    from la_trt.eval.items import DataSource
    from la_trt.options import GenerationOptions

DEFAULT_MAX_TOKENS = {"lookworld": 700}
_MAX_TOKENS = 1024  # the paper's longest answer


@click.group(name="eval", invoke_without_command=True)
@source_options
@data_options
@click.option(
    "--policy",
    default="copy",
    metavar="POLICY",
    help="Preset (copy, route, random, vision, text, never) or FILE.yaml, as in la-trt infer.",
)
@policy_options
@click.option(
    "--max-tokens",
    type=int,
    metavar="N",
    help="Tokens of an answer, at most.  [default: 700 for lookworld, else 1024, but never more "
    "than half of the context]",
)
@sampling_options
@click.option(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="Of the sampling and of the bootstrap, 0 to 2^63 - 1.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=8,
    metavar="N",
    help="Questions answered at the same time; changes no answer.",
)
@click.option("--output", type=PATH, metavar="DIR", help="Where answers and reports go; needed.")
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Go on where an earlier run in --output stopped, or delete its answers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@suite_options
@limit_options(IMAGE_LIMITS)
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: Source,
    limits: Limits,
    **flags: Any,
) -> None:
    """Score a model on a suite, or compare two runs.

    Every answer is kept in --output as it comes; at the end report.json and report.md stand
    beside them, and the table is printed. Intervals are 95 % bootstrap intervals.
    """
    if ctx.invoked_subcommand is not None:
        refuse_flags(ctx)
        return
    check_flags(ctx)
    from la_trt.eval.report import report_table

    source = replace(source, max_batch=flags["batch"])
    if flags["resume"]:
        ctx.obj.kept = str(flags["output"])
    report = _evaluate(source, limits, flags)
    if flags["as_json"]:
        shown = {name: value for name, value in report.items() if name != "units"}
        print_json(shown)
    else:
        click.echo(report_table(report), nl=False)
    broken = report["answers"]["num_numerical_errors"]
    if broken:
        raise GateError(
            f"the model's numbers were not finite in {broken} answers, which end there\n"
            "build the bundle again, with --quant none",
            name="E_NUMERICAL",
        )


def _evaluate(source: Source, limits: Limits, flags: dict[str, Any]) -> dict[str, Any]:
    """The report, written into the output directory."""
    from la_trt.api import make_options
    from la_trt.eval.evaluate import evaluate_suite
    from la_trt.eval.store import check_output
    from la_trt.eval.suites import suite as suite_named

    check_output(flags["output"])

    name: str = flags["suite"]
    names = ("policy", "inject", "route_percent", "max_reflections", "temperature", "top_p")
    max_tokens = flags["max_tokens"]
    if max_tokens is None:
        max_tokens = DEFAULT_MAX_TOKENS.get(name, _MAX_TOKENS)
    options = make_options(
        **{key: flags[key] for key in (*names, "top_k", "repetition_penalty", "seed")},
        max_tokens=max_tokens,
    )
    suite = suite_named(name)
    data = _data_source(name, flags)
    loaded = suite.load(data)
    if loaded.bad_rows:
        _warn(f"{data.data}: {len(loaded.bad_rows)} bad rows skipped", loaded.bad_rows)
    model = source.open(limits, mass=options.needs_mass)
    options = _fitting(options, model, given=flags["max_tokens"] is not None)
    settings = _settings(source, model, name, data, options, flags)
    note(json.dumps(settings["asked"], ensure_ascii=False))
    with score_bar(name) as progress:
        report = evaluate_suite(
            model,
            suite,
            loaded,
            options,
            flags["output"],
            settings,
            limit=flags["limit"],
            resume=flags["resume"],
            progress=progress,
            tell=note,
        )
    later = report["num_bad_rows"] - len(loaded.bad_rows)
    if later:
        _warn(f"{later} questions could not be asked", report["bad_rows"][len(loaded.bad_rows) :])
    return report


def _fitting(options: GenerationOptions, model: LookAgain, *, given: bool) -> GenerationOptions:
    """The options with an answer that leaves room for a question. Raises InputError.

    All questions of a run get the same `max_tokens`, which the report names.
    """
    most = model.engine.limits.max_len
    if not given:
        return replace(options, max_tokens=min(options.max_tokens, max(1, most // 2)))
    if options.max_tokens >= most:
        raise InputError(
            f"--max-tokens {options.max_tokens}: the context of {most} tokens has no room for a "
            "question besides\nlower --max-tokens",
            name="E_CONTEXT_LENGTH",
        )
    return options


def _data_source(name: str, flags: dict[str, Any]) -> DataSource:
    from la_trt.eval.items import DataSource

    options: dict[str, Any] = {}
    if name == "lookworld":
        options["config"] = world_of(flags)
    elif name == "chair":
        options["synonyms"] = flags["synonyms"]
    elif name == "mmbench":
        options["circular"] = flags["circular"]
    return DataSource(
        data=flags["data"],
        images=flags["images"],
        instruction=flags["instruction"],
        options=options,
    )


def _settings(
    source: Source,
    model: LookAgain,
    name: str,
    data: DataSource,
    options: GenerationOptions,
    flags: dict[str, Any],
) -> dict[str, Any]:
    """`asked`: what an answer depends on; `run`: what it does not. Plain JSON values."""
    import la_trt
    from la_trt.cli.eval_options import fingerprint
    from la_trt.cli.source import shipped

    path = source.engine or source.ckpt or shipped()
    engine = model.engine.limits
    special: dict[str, Any] = {}
    if name == "lookworld":
        config = data.options["config"]
        special = {"split": config.split, "world": asdict(config.world)}
    elif name == "chair" and flags["synonyms"] is not None:
        special = {"synonyms": fingerprint(flags["synonyms"])}
    elif name == "mmbench":
        special = {"circular": flags["circular"]}
    return {
        "asked": {
            "suite": name,
            **special,
            "instruction": data.instruction,
            "model": fingerprint(path),
            "engine": {
                "name": engine.name,
                "dtype": engine.dtype,
                "max_len": engine.max_len,
                "kv_dtype": engine.details.get("kv_dtype"),
            },
            "policy": options.policy.to_dict(),
            "sampling": asdict(options.sampling),
            "max_tokens": options.max_tokens,
        },
        "run": {
            "la_trt_version": la_trt.__version__,
            "model": str(path),
            "device": engine.device,
            "data": None if data.data is None else str(data.data),
            "images": None if data.images is None else str(data.images),
            "limit": flags["limit"],
            "num_per_family": flags["num_per_family"] if name == "lookworld" else None,
            "batch": flags["batch"],
            "threads": source.threads,
        },
    }


def _warn(what: str, rows: Sequence[object]) -> None:
    import warnings

    shown = "; ".join(map(str, rows[:3])) + ("; ..." if len(rows) > 3 else "")
    warnings.warn(" ".join(f"{what}: {shown}".split()), UserWarning, stacklevel=2)


@command.command(name="compare")
@click.argument("run_a", type=PATH)
@click.argument("run_b", type=PATH)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Of the bootstrap."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option(
    "--output", type=PATH, metavar="DIR", help="Also write compare.json and compare.md there."
)
@debug_option
def compare_command(
    run_a: Path, run_b: Path, seed: int, as_json: bool, output: Path | None
) -> None:
    """Compare two finished runs over the same questions: B minus A.

    Differences come with 95 % paired bootstrap intervals; the last row counts the questions that
    one run alone has right, with the p-value of McNemar's exact test.
    """
    from la_trt.eval.report import compare, compare_table
    from la_trt.eval.store import read_report, write_json
    from la_trt.files.atomic import atomic_file

    if output is not None and output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: is a file\ngive a directory")
    found = compare(read_report(run_a), read_report(run_b), seed=seed)
    found = {"a": str(run_a), "b": str(run_b), **found}
    names = run_a.name or str(run_a), run_b.name or str(run_b)
    table = compare_table(found, names if names[0] != names[1] else (str(run_a), str(run_b)))
    if output is not None:
        write_json(output / "compare.json", found)
        with atomic_file(output / "compare.md") as file:
            file.write(table.encode())
    if as_json:
        print_json(found)
    else:
        click.echo(table, nl=False)
