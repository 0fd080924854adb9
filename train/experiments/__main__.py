"""`python -m train.experiments`: run what is missing, write the tables and plots.

`--dry-run` shows the plan and how long it takes. Every stage is a process of its own, run once:
killed at any moment, the same command goes on, and on another machine it repeats no evaluation
that `docs/results/stages` holds. `--report-only` writes what there is.

All variants start from a checkpoint that has never had a visual token put in (the shipped one
has): `python -m train.tiny --recipe start --reattention none` made it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from la_trt.assets import TINY_CHECKPOINT
from la_trt.errors import InputError, UsageError
from la_trt.files.atomic import atomic_file
from train.command import run
from train.experiments.plan import COPIES, START, WORLD, PlanConfig, make_plan
from train.experiments.plots import draw_all
from train.experiments.results import collect
from train.experiments.runner import Runner, plan_table
from train.experiments.stages import Stage, chosen
from train.experiments.tables import page

COLD_START = Path("docs/results/start")
# The same recipe with copies.
COLD_START_COPIES = Path("docs/results/start-copies")
# The same without copies and with half the decoder's layers.
SIZES = ("layers-3=docs/results/start-layers-3",)
MAKE_COLD_START = (
    "OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 "
    "-m train.tiny --recipe start --reattention none --seed 0 --output runs/cold-start"
)
PICTURE = TINY_CHECKPOINT.parent / "images" / "count.png"


@click.command()
@click.option("--start", type=click.Path(path_type=Path), default=COLD_START, show_default=True,
              help="cold-start checkpoint of all variants, trained without copies")  # fmt: skip
@click.option("--size", "sizes", multiple=True, metavar="NAME=DIR", default=SIZES,
              show_default=True,
              help="a cold-start checkpoint of another size; repeatable")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/experiments"),
              show_default=True, help="where the stages' files go")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path), default=Path("docs/results"),
              show_default=True, help="where tables and plots go, small results kept")  # fmt: skip
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--world", "dials", multiple=True, metavar="NAME=VALUE",
              help="a dial of the main comparison's world; repeatable")  # fmt: skip
@click.option("--scale", default=1.0, show_default=True, help="of all budgets, for a trial")
@click.option("--jobs", default=2, show_default=True, help="stages at a time, one core each")
@click.option("--only", metavar="REGEX", help="stages to run, by name, with what they need")
@click.option("--keep-stale", is_flag=True, help="take results of older code, and say so")
@click.option("--keep-going", is_flag=True, help="after a failure, run what does not need it")
@click.option("--dry-run", is_flag=True, help="show the plan and end")
@click.option("--report-only", is_flag=True, help="write what there is and end")
def main(
    start: Path,
    sizes: tuple[str, ...],
    work: Path,
    results: Path,
    seeds: str,
    dials: tuple[str, ...],
    scale: float,
    jobs: int,
    only: str | None,
    keep_stale: bool,
    keep_going: bool,
    dry_run: bool,
    report_only: bool,
) -> None:
    """Train all variants, evaluate them, and write docs/results."""
    if jobs < 1:
        raise UsageError(f"jobs: expected at least 1, got {jobs}")
    more = {f"{START}-{name}": Path(path) for name, path in map(_pair, sizes)}
    config = PlanConfig(
        seeds=_numbers(seeds),
        scale=scale,
        world=WORLD | {name: json.loads(value) for name, value in map(_pair, dials)},
        sizes=tuple(name.removeprefix(f"{START}-") for name in more),
    )
    inputs = {START: start, COPIES: COLD_START_COPIES, "picture": PICTURE, **more}

    def made(stages: Sequence[Stage]) -> Runner:
        return Runner(stages, inputs, work, kept=results / "stages", keep_stale=keep_stale)

    plan = make_plan(config)
    runner = made(plan if only is None else chosen(plan, only))
    if not (dry_run or report_only or start.exists()):
        raise InputError(
            f"{start}: no cold-start checkpoint there\nmake it with `{MAKE_COLD_START}`, "
            "or give another with --start",
            name="E_MISSING",
        )
    if dry_run:
        click.echo(plan_table(runner, jobs))
        return
    try:
        if not report_only:
            runner.run(
                jobs=jobs, say=lambda text: click.echo(text, err=True), keep_going=keep_going
            )
    finally:
        write_results(runner if only is None else made(plan), config, results)
    click.echo(results / "README.md")


def write_results(runner: Runner, config: PlanConfig, directory: Path) -> dict[str, Any]:
    """The results of the finished stages, written as README.md, results.json and pictures."""
    values = collect(runner, config)
    directory.mkdir(parents=True, exist_ok=True)
    pictures = draw_all(values, directory)
    for stage in runner.stages:
        made = runner.result(stage) if stage.kind == "heatmap" else None
        if made is not None:
            shutil.copyfile(made.directory / stage.result, directory / f"{stage.name}.png")
            pictures.append(f"{stage.name}.png")
    for name, text in (
        ("results.json", json.dumps(values, indent=1) + "\n"),
        ("README.md", page(values, pictures)),
    ):
        with atomic_file(directory / name) as file:
            file.write(text.encode())
    return values


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name or not value:
        raise UsageError(f"{text!r}: expected NAME=VALUE")
    return name, value


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"seeds {text!r}: expected numbers such as 0,1,2") from None


if __name__ == "__main__":
    sys.exit(run(main))
