"""Decode steps of our CPU engine by batch: what each sequence more costs, at the 3B shape.

    python -m benchmarks.batch_steps [ENGINE ...] [--batch 1 --batch 8] [--rounds 3] [--name NAME]

Engines by their names in `peers`, all of ours where none is given. Steps of all batches, behind
one prompt of --context tokens each, follow one another and are forgotten again, so that all are of
one length and a batch is compared with the step of one sequence that ran just before or after it.
An engine's answers are checked first, as in `peers`. Beside the times: operations of the matrices
a second, without attention's. What the processor bounds them to, say `latrt_bench` and
`latrt_bench_mix` (csrc/tests). Ends with one JSON line.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.make_3b import shape_3b
from benchmarks.peer_engines import ROOT
from benchmarks.peer_probe import machine_peaks
from benchmarks.peers import OURS, by_kind, check, prepare, prompt, reference_top
from benchmarks.report import bounds_of, median_and_bounds, publish
from benchmarks.roofline import layer_linears, linear
from benchmarks.worker import Worker
from la_trt.config import TextConfig

WEIGHT_BITS = 4  # operations do not depend on them


def step_ops(text: TextConfig) -> float:
    """Operations of the matrices for one token, the head's too; attention's are left out."""
    layers = layer_linears(text, 1, WEIGHT_BITS).times(text.num_hidden_layers)
    return (layers + linear(1, text.hidden_size, text.vocab_size, WEIGHT_BITS)).ops


def measure(
    worker: Worker,
    batches: list[int],
    context: int,
    rounds: int,
    turns: int,
    advance: Callable[[int], None],
) -> dict[int, dict[str, Any]]:
    """By batch: milliseconds a step, and [median, low, high] of the throughput over the first's."""
    seconds: list[list[float]] = [[] for _ in batches]
    for i in range(rounds):
        ids = prompt(context, i)
        run = worker.ask(ids=ids, decode=turns * len(batches), batches=batches)
        advance(1)
        for times, more in zip(seconds, by_kind(run["decode_s"], len(batches)), strict=True):
            times += more[1:]  # the first turn warms up
    found = {}
    for batch, times in zip(batches, seconds, strict=True):
        gain = [batch / batches[0] * a / b for a, b in zip(seconds[0], times, strict=True)]
        found[batch] = {
            "step_ms": 1e3 * statistics.median(times),
            "step_ms_least": 1e3 * min(times),
            "gain": median_and_bounds(gain),
        }
    return found


def to_table(result: dict[str, Any]) -> str:
    """Markdown: a row for each engine and batch."""
    first = result["batches"][0]
    bounds = bounds_of(result["rounds"] * (result["turns"] - 1))
    lines = [
        f"Random weights of the 3B shape, {result['threads']} threads, {result['rounds']} prompts "
        f"of {result['context']} tokens and {result['turns'] - 1} turns behind each: medians, and "
        f"the throughput of neighbouring steps over that of batch {first} ({bounds}).",
        "",
        f"| engine | batch | ms a step (least) | tok/s | times batch {first} | matrices, Gop/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, of_engine in result["engines"].items():
        for batch, entry in of_engine.items():
            median, low, high = entry["gain"]
            seconds = entry["step_ms"] / 1e3
            cells = (
                name,
                batch,
                f"{entry['step_ms']:.0f} ({entry['step_ms_least']:.0f})",
                f"{batch / seconds:.1f}",
                "" if batch == first else f"{median:.2f} ({low:.2f} to {high:.2f})",
                f"{batch * result['ops_per_token'] / seconds / 1e9:.0f}",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    reads = ", ".join(f"{p['read_gb_s']:.1f}" for p in result["probes"])
    lines += ["", f"Read bandwidth before, between and after: {reads} GB/s.", ""]
    lines += [f"- {name}: {said}" for name, said in result["checks"].items()]
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("engines", nargs=-1)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "out" / "peers")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 8),
    multiple=True,
    default=(1, 2, 4, 8),
    show_default=True,
    help="Sequences of a step; the first given is what the others are compared with.",
)
@click.option("--context", default=512, show_default=True, help="Tokens of a prompt.")
@click.option("--threads", default=os.cpu_count(), show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Prompts.")
@click.option(
    "--turns",
    type=click.IntRange(min=2),
    default=17,
    show_default=True,
    help="Steps of every batch behind each prompt; the first is not counted.",
)
@click.option("--name", default="batch_steps", show_default=True, help="Of the results' file.")
def main(
    engines: tuple[str, ...],
    work: Path,
    batches: tuple[int, ...],
    context: int,
    threads: int,
    rounds: int,
    turns: int,
    name: str,
) -> None:
    engines = engines or tuple(OURS)
    if unknown := set(engines) - set(OURS):
        raise click.UsageError(f"expected some of {list(OURS)}, got {sorted(unknown)}")
    work = work.resolve()
    length = len(engines) * rounds
    found: dict[str, Any] = {}
    checks: dict[str, str] = {}
    prepared = {engine: prepare(engine, work, threads) for engine in engines}
    probes = [machine_peaks(threads)]
    with click.progressbar(length=length, label="asking", file=sys.stderr) as bar:
        for engine, (bits, _, command) in prepared.items():
            with Worker(*command) as worker:
                checks[engine] = check(worker, reference_top(work), bits, ours=True)
                found[engine] = measure(worker, list(batches), context, rounds, turns, bar.update)
            probes.append(machine_peaks(threads))
    result = {
        "benchmark": name,
        "engines": found,
        "checks": checks,
        "batches": batches,
        "context": context,
        "rounds": rounds,
        "turns": turns,
        "threads": threads,
        "ops_per_token": step_ops(shape_3b().text),
        "probes": probes,
    }
    publish(name, result, to_table(result))


if __name__ == "__main__":
    main()
