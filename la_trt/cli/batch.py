"""`la-trt batch`: a file of questions becomes a file of answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from la_trt.cli.app import debug_option
from la_trt.cli.options import (
    IMAGE_LIMITS,
    PATH,
    STOP_LIMITS,
    FiniteRange,
    limit_options,
    policy_options,
    sampling_options,
    source_options,
)
from la_trt.cli.source import Source, shipped_bundle
from la_trt.cli.terminal import note, print_json, progress_bar
from la_trt.errors import GateError, InputError, UsageError
from la_trt.limits import DEFAULT_MAX_TOKENS, Limits

if TYPE_CHECKING:
    from la_trt.offline.answer import Record
    from la_trt.offline.executors import Work
    from la_trt.offline.journal import Journal
    from la_trt.offline.rows import BatchInput

_GENERATION = (
    "policy",
    "inject",
    "route_percent",
    "max_reflections",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
    "stop",
)
_CHUNKS_OF_BATCHES = 4


@click.command(name="batch")
@source_options
@click.option(
    "--input",
    "source_file",
    type=PATH,
    required=True,
    metavar="FILE",
    help="JSON lines, each with a prompt, and id, images, system, max_tokens, temperature, seed, "
    "policy where wanted.",
)
@click.option(
    "--output",
    type=PATH,
    required=True,
    metavar="FILE",
    help="JSON lines, one for each row of the input and in its order; there when all are "
    "answered. Until then FILE.partial keeps what has been.",
)
@click.option(
    "--images",
    type=PATH,
    metavar="DIR",
    help="What image names are relative to.  [default: the directory of --input]",
)
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
    help="Tokens of an answer, at most, where its row does not say.  "
    f"[default: {DEFAULT_MAX_TOKENS}, or what fits]",
)
@sampling_options
@click.option(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="0 to 2^63 - 1; the same seed, the same answers.",
)
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="Ends an answer, not part of it; repeatable."
)
@click.option(
    "--batch",
    "max_batch",
    type=click.IntRange(1, 1024),
    default=8,
    metavar="N",
    help="Questions that an engine answers at the same time; changes no answer.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="local: one engine in this process; ray: --workers engines by Ray Data "
    "(pip install '.[ray]').",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="ray: engines, each with --threads CPUs.  [default: 1]",
)
@click.option(
    "--worker-gpus",
    type=FiniteRange(min=0),
    metavar="X",
    help="ray: GPUs that each engine has for itself.  [default: 0]",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="ray: cluster to run on, whose machines see the same files.  [default: one on this "
    "machine, for as long as it runs]",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Go on where an earlier run for --output stopped, or delete its answers, finished or not.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@limit_options(IMAGE_LIMITS | STOP_LIMITS)
@debug_option
@click.pass_context
def command(ctx: click.Context, /, source: Source, limits: Limits, **flags: Any) -> None:
    """Answer a file of questions into a file of answers.

    Every row gets exactly one line: its answer, or why it was refused. A killed run goes on where
    it was. Exit code 3 where rows were refused, after all others have been answered.
    """
    from la_trt.offline.journal import check_output, open_journal
    from la_trt.offline.rows import scan
    from la_trt.reattention.policy import preset

    _check_executor(ctx, flags)
    source = replace(source, max_batch=flags["max_batch"])
    if flags["executor"] == "ray" and source.backend != "tensorrt":
        source = replace(source, threads=source.threads or 1)
    check_output(flags["output"], resume=flags["resume"], source=flags["source_file"])
    if flags["images"] is not None and not flags["images"].is_dir():
        raise UsageError(f"--images {flags['images']}: no such directory")
    settings = _generation(flags, limits)
    rows = scan(flags["source_file"])
    mass = any(p.needs_mass for p in (settings["policy"], *map(preset, rows.policies)))
    started = time.perf_counter()
    asked = _asked(source, rows, settings, flags["images"], limits)
    with open_journal(flags["output"], {"asked": asked}, resume=flags["resume"]) as journal:
        if flags["resume"]:
            ctx.obj.kept = f"{flags['output']}.partial"
        num_before = len(journal.records)
        note(f"la-trt: {num_before} of {rows.num_rows} rows are answered already")
        work = _work(source, rows, journal, settings, flags, limits=limits, mass=mass)
        _answer(work, source, rows, journal, flags)
        journal.publish(rows.numbers())
    ctx.obj.kept = ""
    seconds = time.perf_counter() - started
    _report(journal, rows, num_before, seconds, flags)


def _check_executor(ctx: click.Context, flags: dict[str, Any]) -> None:
    if flags["executor"] != "ray":
        for name in ("workers", "worker_gpus", "ray_address"):
            if flags[name] is not None:
                flag = next(p.opts[0] for p in ctx.command.params if p.name == name)
                raise UsageError(f"{flag} has no effect on this process\nadd --executor ray")


def _generation(flags: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The settings of `Answerer`, the policy as an object. Raises UsageError."""
    from la_trt.api import make_options

    settings = {name: flags[name] for name in _GENERATION}
    most = DEFAULT_MAX_TOKENS if flags["max_tokens"] is None else flags["max_tokens"]
    options = make_options(**settings | {"max_tokens": most})
    options.check(limits)
    settings["policy"] = options.policy
    for name in ("inject", "route_percent", "max_reflections"):
        del settings[name]
    return settings


def _asked(
    source: Source,
    rows: BatchInput,
    settings: dict[str, Any],
    images: Path | None,
    limits: Limits,
) -> dict[str, Any]:
    """What an answer depends on, as plain JSON values: a resumed run must have the same."""
    from la_trt.cli.eval_options import fingerprint
    from la_trt.cli.source import shipped

    plain = {name: value for name, value in settings.items() if name != "policy"}
    return {
        "input": rows.sha256,
        "model": fingerprint(source.engine or source.ckpt or shipped()),
        "backend": source.backend,
        "max_model_len": source.max_model_len,
        "kv_dtype": source.kv_dtype,
        "images": None if images is None else str(images.absolute()),
        "limits": asdict(limits),
        "policy": settings["policy"].to_dict(),
        **plain,
    }


def _work(
    source: Source,
    rows: BatchInput,
    journal: Journal,
    settings: dict[str, Any],
    flags: dict[str, Any],
    *,
    limits: Limits,
    mass: bool,
) -> Work:
    from functools import partial

    import numpy as np

    from la_trt.offline.executors import Work

    waiting = ~np.isin(rows.spans[:, 0], np.fromiter(journal.records, np.int64))
    return Work(
        open_model=partial(source.open, limits, mass=mass),
        settings=settings,
        source=rows.path,
        images=flags["images"] or rows.path.parent,
        spans=rows.spans[waiting],
        chunk=_CHUNKS_OF_BATCHES * source.max_batch,
    )


def _answer(
    work: Work, source: Source, rows: BatchInput, journal: Journal, flags: dict[str, Any]
) -> None:
    """Every row has its record in the journal when this returns."""
    from la_trt.offline.answer import refused

    with progress_bar("answering") as progress:
        for records in _records(work, source, flags) if len(work.spans) else ():
            journal.append(records)
            progress(f"{journal.num_refused} refused", len(journal.records), rows.num_rows)
    # Last: a run whose model does not open leaves nothing that binds the next one.
    journal.append(
        refused(number, row_id, InputError(reason, name="E_ROW"))
        for number, (row_id, reason) in rows.bad.items()
    )
    assert len(journal.records) == rows.num_rows, "rows without a record"


def _records(work: Work, source: Source, flags: dict[str, Any]) -> Iterator[list[Record]]:
    from la_trt.offline.executors import RayOptions, run_local, run_on_ray

    if flags["executor"] == "local":
        return run_local(work)
    if source.engine is None and source.ckpt is None:
        shipped_bundle()  # built once, not by every worker
    options = RayOptions(
        address=flags["ray_address"],
        num_workers=flags["workers"] or 1,
        cpus=source.threads or 1,
        gpus=flags["worker_gpus"] or 0.0,
    )
    return run_on_ray(work, options)


def _report(
    journal: Journal, rows: BatchInput, num_before: int, seconds: float, flags: dict[str, Any]
) -> None:
    num_rows, refused = rows.num_rows, journal.num_refused
    if flags["as_json"]:
        facts = {
            "output": str(flags["output"]),
            "rows": num_rows,
            "refused": refused,
            "resumed": num_before,
            "seconds": round(seconds, 3),
        }
        print_json(facts)
    else:
        click.echo(f"{flags['output']}: {num_rows} rows, {refused} refused, in {seconds:.1f} s")
    if journal.num_numerical_errors:
        raise GateError(
            f"the model's numbers were not finite in {journal.num_numerical_errors} answers\n"
            "build the bundle again, with --quant none",
            name="E_NUMERICAL",
        )
    if refused:
        raise InputError(
            f"{refused} of {num_rows} rows were refused: their lines have the field error\n"
            f"see {flags['output']}",
            name="E_ROW",
        )
