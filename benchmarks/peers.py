"""Our CPU engine and those that people use today, side by side at the 3B shape.

    python benchmarks/peers.py [--work DIR] [--only NAME ...] [--rounds 3] [--fresh] [--name NAME]

Random weights, the same for all; batch 1, greedy, contexts 512 and 2048. Each peer is set up in an
environment of its own below --work, its model made by its own tools. One engine runs at a time,
between two probes of the machine's read bandwidth. An engine's record is kept in --work, so a run
that was cut short goes on where it was. Peers that cannot be installed, or whose model does not
fit the memory, are named with the cause. Before it is timed, an engine is checked: the same answer
twice, and, from 8 bits on, its first token among the 1000 likeliest of transformers in float32.
Ends with one JSON line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.make_3b import NUM_PLAIN_TOKENS
from benchmarks.native_bundle import pack
from benchmarks.peer_engines import (
    PEERS,
    ROOT,
    NotAvailable,
    checkpoint,
    model_of,
    python_of,
    require_memory,
)
from benchmarks.peer_probe import machine_peaks
from benchmarks.peer_table import rates_of, summarise, to_table
from benchmarks.report import median_and_bounds, publish
from benchmarks.worker import Worker
from build_engines.quantize import Quant

OURS = {  # bits, weights that share a scale
    "la-trt int4": (4, 32),
    "la-trt int4 block 128": (4, 128),
    "la-trt int8": (8, 32),
    "la-trt int8 block 128": (8, 128),
    "la-trt bf16": (16, 32),
}
CONTEXTS = (512, 2048)
CHECK_IDS, CHECK_TOP, CHECK_DECODE = 64, 1000, 4
REINJECT, BATCH, BATCH_STEPS = 256, 8, 24
REFERENCE = "transformers float32"


def prompt(context: int, seed: int) -> list[int]:
    """Plain tokens, chosen by the seed."""
    rng = np.random.default_rng([context, seed])
    return [int(i) for i in rng.integers(1000, NUM_PLAIN_TOKENS - 1000, context)]


def check(worker: Worker, top: list[int] | None, bits: int, *, ours: bool) -> str:
    """How the check went; raises NotAvailable where the engine's answers are wrong.

    The same prompt must give the same answer twice, or a peer's the same first token: where a peer
    does not repeat itself to the last bit, random weights decide by little, and it is said. Nor do
    random weights survive rounding to 4 bits: there the first token is named, so that engines
    which round alike can be compared, and not held against float32.
    """
    ids = prompt(CHECK_IDS, 0)
    first, second = (worker.ask(ids=ids, decode=CHECK_DECODE)["tokens"] for _ in range(2))
    if first[0] != second[0] or (ours and first != second):
        raise NotAvailable(f"the same prompt gave {first}, then {second}")
    same = next((k for k, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), None)
    said = "same answer twice" if same is None else f"one prompt's answers part at token {same + 1}"
    if bits == 4:
        return f"{said}, first token {first[0]}"
    if top is None:
        return f"{said}; no reference to rank its first token in"
    if first[0] not in top:
        raise NotAvailable(f"its first token {first[0]} is none of the reference's {CHECK_TOP}")
    return f"{said}, first token number {top.index(first[0]) + 1} of the reference"


def measure(worker: Worker, rounds: int, decode: int) -> dict[str, Any]:
    """Runs by context; the first prompt of the shortest context warms up."""
    worker.ask(ids=prompt(CONTEXTS[0], 99), decode=2)
    runs: dict[str, Any] = {}
    for context in CONTEXTS:
        runs[str(context)] = []
        for i in range(rounds):
            run = worker.ask(ids=prompt(context, i), decode=decode)
            each = rates_of(run, context)
            click.echo(
                f"  {context}: decode {each['decode']:.2f} tok/s, "
                f"prefill {each['prefill']:.1f} tok/s",
                err=True,
            )
            runs[str(context)].append(run)
    return runs


def by_kind(seconds: list[float], kinds: int) -> list[list[float]]:
    """Seconds of each kind of step, taken forth and back: equal places are neighbours in time."""
    found: list[list[float]] = [[] for _ in range(kinds)]
    for turn in range(len(seconds) // kinds):
        of_turn = seconds[turn * kinds : (turn + 1) * kinds]
        for times, taken in zip(found, of_turn[:: -1 if turn % 2 else 1], strict=True):
            times.append(taken)
    return found


def ours_alone(worker: Worker, rounds: int, mass_steps: int) -> dict[str, Any]:
    """What the mass, a batch and a re-injection cost, each beside neighbouring plain steps."""
    ids = prompt(CONTEXTS[0], 0)
    mass, gain, plain = [], [], []
    for _ in range(rounds):
        run = worker.ask(ids=ids, decode=mass_steps, mass=True)
        with_mass, without = by_kind(run["decode_s"], 2)
        mass += [m / p - 1 for m, p in zip(with_mass, without, strict=True)]
        plain += without
        run = worker.ask(ids=ids, decode=BATCH_STEPS, batches=[1, BATCH])
        one, many = by_kind(run["decode_s"], 2)
        gain += [BATCH * a / b for a, b in zip(one, many, strict=True)]
    reinject = statistics.median(worker.ask(ids=ids, reinject=REINJECT)["reinject_s"])
    overhead, *bounds = median_and_bounds(mass)
    return {
        "mass_overhead_frac": overhead,
        "mass_overhead_95": bounds,
        "mass_pairs": len(mass),
        "batch8_gain": statistics.median(gain),
        "kv_reinject_steps": reinject / statistics.median(plain),
    }


def names() -> list[str]:
    """All engines, the reference first."""
    return [REFERENCE, *OURS, *(p.name for p in PEERS if p.name != REFERENCE)]


def prepare(name: str, work: Path, threads: int) -> tuple[int, Path, list[str]]:
    """(bits, model, command of the worker), all set up and made. Raises NotAvailable."""
    if name in OURS:
        bits, block_size = OURS[name]
        quants: dict[int, Quant] = {4: "int4", 8: "int8", 16: "none"}
        model = work / (f"ours_int{bits}_{block_size}" if bits < 16 else "ours_bf16")
        if not model.exists():
            source = checkpoint(work, peer=False)
            pack(source, model, quants[bits], block_size, dtype="bfloat16")
        return bits, model, [sys.executable, "-m", "benchmarks.peer_ours", str(model), str(threads)]
    peer = next(p for p in PEERS if p.name == name)
    python = python_of(peer, work)
    model = model_of(peer, work, python)
    require_memory(peer.run_gib, "running it")
    script, *rest = peer.worker
    return peer.bits, model, [python, str(ROOT / script), str(model), str(threads), *rest]


def reference_top(work: Path) -> list[int] | None:
    """The likeliest first tokens of transformers in float32, where they are known."""
    path = work / "reference.json"
    return json.loads(path.read_text()) if path.exists() else None


def record_of(
    name: str, work: Path, threads: int, rounds: int, decode: int, mass_steps: int
) -> dict[str, Any]:
    """Prepare, check and measure one engine. Raises NotAvailable."""
    top = reference_top(work)
    bits, model, command = prepare(name, work, threads)
    before = machine_peaks(threads)
    with Worker(*command) as worker:
        record: dict[str, Any] = {"engine": name, "bits": bits, **worker.hello}
        if name == REFERENCE:
            top = worker.ask(ids=prompt(CHECK_IDS, 0), top=CHECK_TOP)["top"]
            (work / "reference.json").write_text(json.dumps(top))
        record["check"] = check(worker, top, bits, ours=name in OURS)
        record["runs"] = measure(worker, rounds, decode)
        if name in OURS:
            record["alone"] = ours_alone(worker, rounds, mass_steps)
            record["weight_bytes"] = decoder_bytes(model)
    record["probes"] = [before, machine_peaks(threads)]
    record["load_average"] = os.getloadavg()[0]
    record["time"] = datetime.now(UTC).isoformat(timespec="minutes")
    return record


def decoder_bytes(bundle: Path) -> int:
    """Bytes of codes and scales that a decode step reads: every matrix, the table as the head."""
    from la_trt.engines.native import WEIGHTS
    from la_trt.files.safetensors import SafetensorsFile

    file = SafetensorsFile(bundle / WEIGHTS)
    wanted = [n for n in file.names() if not n.startswith("visual.")]
    return sum(file.info(n).stop - file.info(n).start for n in wanted)


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "out" / "peers")
@click.option("--only", multiple=True, help="These engines alone; what is cached still counts.")
@click.option("--threads", default=os.cpu_count(), show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Prompts of each context.")
@click.option("--decode", default=32, show_default=True, help="Steps behind each prompt.")
@click.option(
    "--mass-steps",
    type=click.IntRange(min=4),
    default=512,
    show_default=True,
    help="Of ours, in each round, half of them with the visual mass; a multiple of 4.",
)
@click.option("--fresh", is_flag=True, help="Measure again what is cached.")
@click.option("--name", "results", default="peers", show_default=True, help="Of the results.")
def main(
    work: Path,
    only: tuple[str, ...],
    threads: int,
    rounds: int,
    decode: int,
    mass_steps: int,
    fresh: bool,
    results: str,
) -> None:
    if mass_steps % 4:
        raise click.UsageError(f"--mass-steps: expected a multiple of 4, got {mass_steps}")
    work = work.resolve()
    (work / "records").mkdir(parents=True, exist_ok=True)
    if unknown := set(only) - set(names()):
        raise click.UsageError(f"--only: expected some of {names()}, got {sorted(unknown)}")
    records = []
    for name in names():
        path = work / "records" / f"{name.replace(' ', '_')}.json"
        wanted = not only or name in only
        if path.exists() and not (fresh and wanted):
            records.append(json.loads(path.read_text()))
            continue
        if not wanted:
            records.append({"engine": name, "cause": "not asked for in this run"})
            continue
        click.echo(name, err=True)
        try:
            record = record_of(name, work, threads, rounds, decode, mass_steps)
            path.write_text(json.dumps(record, indent=1) + "\n")
        except (NotAvailable, subprocess.SubprocessError) as problem:
            record = {"engine": name, "cause": str(problem)}
            click.echo(f"  {problem}", err=True)
        records.append(record)
    result = {**summarise(records), "threads": threads}
    publish(results, result, to_table(result), records=records)


if __name__ == "__main__":
    main()
