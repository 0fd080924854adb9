"""Some engines of `peers`, loaded together and asked in turns: how many times as fast they are.

    python -m benchmarks.peer_turns "llama.cpp Q4_0" "la-trt int4" [...] [--rounds 12]

On a shared machine rates of different minutes cannot be compared; those of neighbouring seconds
can. Every round asks each engine the same prompt, in an order that turns, and gives ratios to the
first engine named, and ours to the best peer: printed are their median and where it lies with 95 %
confidence, or the least and the greatest of fewer than 6 rounds. Engines and models are prepared,
and the answers checked, as in `peers`. Ends with one JSON line.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.peer_engines import ROOT
from benchmarks.peer_probe import machine_peaks
from benchmarks.peer_table import is_ours, rates_of
from benchmarks.peers import CONTEXTS, OURS, check, names, prepare, prompt, reference_top
from benchmarks.report import bounds_of, median_and_bounds, publish
from benchmarks.worker import Worker


def in_turns(
    workers: dict[str, Worker],
    context: int,
    rounds: int,
    decode: int,
    advance: Callable[[int], None],
) -> dict[str, dict[str, list[float]]]:
    """Tokens a second by engine and phase, one number a round; one round more warms up."""
    rates: dict[str, dict[str, list[float]]] = {n: {"decode": [], "prefill": []} for n in workers}
    order = list(workers)
    for i in range(rounds + 1):
        for name in order[i % len(order) :] + order[: i % len(order)]:
            run = workers[name].ask(ids=prompt(context, i), decode=decode)
            if i:
                for phase, rate in rates_of(run, context).items():
                    rates[name][phase].append(rate)
            advance(1)
    return rates


def ratio(
    rates: dict[str, dict[str, list[float]]], name: str, phase: str, other: str | None = None
) -> list[float]:
    """[median, low, high] of the engine's rate over the other's, or the first's, in each round."""
    pairs = zip(rates[name][phase], rates[other or next(iter(rates))][phase], strict=True)
    return median_and_bounds([a / b for a, b in pairs])


def beside_best_peer(context: str, rates: dict[str, dict[str, list[float]]]) -> list[str]:
    """A line for each of our engines: how many times as fast as the peer of the best median."""
    ours = [name for name in rates if is_ours(name)]
    peers = [name for name in rates if not is_ours(name)]
    lines = []
    for name in ours if peers else ():
        found = []
        for phase in ("decode", "prefill"):
            best = max(peers, key=lambda peer: statistics.median(rates[peer][phase]))
            median, low, high = ratio(rates, name, phase, best)
            found.append(f"{phase} {median:.2f} times {best} ({low:.2f} to {high:.2f})")
        lines.append(f"- {name} behind {context}, beside the best peer: {', '.join(found)}")
    return lines


def to_table(result: dict[str, Any]) -> str:
    """Markdown: a row for each engine and context."""
    first = result["engines"][0]
    lines = [
        f"Random weights of the 3B shape, batch 1, {result['threads']} threads, in turns, "
        f"{result['rounds']} rounds of {result['decode']} steps: medians of tokens a second, and "
        f"of the ratio to {first} round by round ({bounds_of(result['rounds'])}).",
        "",
        "| engine | context | decode tok/s | ratio | prefill tok/s | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for context, of_context in result["contexts"].items():
        for name, entry in of_context.items():
            cells = [name, context]
            for phase in ("decode", "prefill"):
                median, low, high = entry[f"{phase}_ratio"]
                cells.append(f"{statistics.median(entry[phase]):.1f}")
                cells.append("" if name == first else f"{median:.2f} ({low:.2f} to {high:.2f})")
            lines.append(f"| {' | '.join(cells)} |")
    reads = ", ".join(f"{p['read_gb_s']:.1f}" for p in result["probes"])
    lines += ["", f"Read bandwidth before and after: {reads} GB/s.", ""]
    for context, of_context in result["contexts"].items():
        lines += beside_best_peer(context, of_context)
    lines += [f"- {name}: {said}" for name, said in result["checks"].items()]
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("engines", nargs=-1, required=True)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "out" / "peers")
@click.option("--context", "contexts", multiple=True, type=int, default=CONTEXTS, show_default=True)
@click.option("--threads", default=os.cpu_count(), show_default=True)
@click.option("--rounds", default=12, show_default=True, help="Prompts of each context.")
@click.option("--decode", default=32, show_default=True, help="Steps behind each prompt.")
@click.option("--name", default="peer_turns", show_default=True, help="Of the results' file.")
def main(
    engines: tuple[str, ...],
    work: Path,
    contexts: tuple[int, ...],
    threads: int,
    rounds: int,
    decode: int,
    name: str,
) -> None:
    if unknown := set(engines) - set(names()):
        raise click.UsageError(f"expected some of {names()}, got {sorted(unknown)}")
    before = machine_peaks(threads)
    work = work.resolve()
    top = reference_top(work)
    workers: dict[str, Worker] = {}
    checks: dict[str, str] = {}
    with contextlib.ExitStack() as loaded:
        for engine in engines:
            click.echo(f"loading {engine}", err=True)
            bits, _, command = prepare(engine, work, threads)
            workers[engine] = loaded.enter_context(Worker(*command))
            checks[engine] = check(workers[engine], top, bits, ours=engine in OURS)
        found: dict[str, Any] = {}
        turns = len(contexts) * (rounds + 1) * len(engines)
        with click.progressbar(length=turns, label="asking", file=sys.stderr) as bar:
            for context in contexts:
                rates = in_turns(workers, context, rounds, decode, bar.update)
                found[str(context)] = {
                    engine: {
                        **rates[engine],
                        "decode_ratio": ratio(rates, engine, "decode"),
                        "prefill_ratio": ratio(rates, engine, "prefill"),
                    }
                    for engine in rates
                }
    result = {
        "benchmark": name,
        "engines": list(engines),
        "checks": checks,
        "contexts": found,
        "rounds": rounds,
        "decode": decode,
        "threads": threads,
        "probes": [before, machine_peaks(threads)],
    }
    publish(name, result, to_table(result))


if __name__ == "__main__":
    main()
