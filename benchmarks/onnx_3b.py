"""The 3B shape at int4: build memory, and decoding side by side with onnxruntime-genai.

    python -m benchmarks.onnx_3b [--work DIR] [--block-size 32] [--layers 36] [--rounds 10]

Makes a random checkpoint, builds a bundle (peak memory), and the peer's model of the same decoder
as `peers` does, then lets both decode in turns: batch 1, context 512, 16 tokens a turn, greedy.
Also: what the mass costs of a decode step (the graph with it against the one without), what huge
pages gain, and a `kv` re-injection of 256 tokens. The mass is judged by ONNX Runtime's own profile
of the nodes that differ: their time is steady, while whole steps vary with where the weights lie.
The engines that are compared stay loaded (4.5 GiB each), one works at a time. The peer's builder
needs about 22 GiB at 36 layers; `--no-peer` leaves the peer out. Ends with one JSON line; exit code
6 when a gate fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.make_3b import NUM_PLAIN_TOKENS
from benchmarks.peer_engines import (
    GIB,
    LAYERS,
    PEERS,
    ROOT,
    NotAvailable,
    checkpoint,
    model_of,
    python_of,
)
from benchmarks.report import publish
from benchmarks.worker import Worker

BLOCK_SIZE = 32
CONTEXT, DECODE, REINJECT = 512, 16, 256
BUILD_GATE_BYTES = 6 * GIB
SPEED_GATE, MASS_GATE = 0.95, 0.03
MASS_PAIRS, MASS_ROUNDS = 2, 3
MASS_PROFILES, PROFILED_STEPS = 4, 64
HEAD_LAYERS = 4  # as large as the head, which is built whatever the layers


def prepare(work: Path, layers: int, block_size: int, reuse: bool) -> tuple[Path, dict[str, Any]]:
    """The bundle, and what its build cost; made afresh unless `reuse`."""
    bundle = work / f"bundle_{layers}_b{block_size}"
    record = bundle.with_suffix(".json")
    if reuse and record.exists():
        known: dict[str, Any] = json.loads(record.read_text())
        return bundle, known
    ckpt = checkpoint(work, peer=False, layers=layers)
    _log(f"building {bundle}")
    command = [sys.executable, "-m", "benchmarks.onnx_worker", "build"]
    command += [str(ckpt), str(bundle), "int4", str(block_size)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    cost: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    files = [f for f in bundle.iterdir() if f.suffix in (".onnx", ".data")]
    cost["file_bytes"] = {f.name: f.stat().st_size for f in files}
    record.write_text(json.dumps(cost))
    return bundle, cost


def prepare_peer(work: Path, layers: int, block_size: int, threads: int) -> list[str]:
    """The command of the peer's worker, its int4 model of the same decoder made if absent."""
    peer = next(p for p in PEERS if p.environment == "genai")
    peer = replace(
        peer,
        name=f"{peer.name}{suffix(layers, block_size)}",
        make=(*peer.make, f"block_size={block_size}"),
        make_gib=peer.make_gib * (layers + HEAD_LAYERS) / (LAYERS + HEAD_LAYERS),
    )
    _log(f"preparing {peer.name}")
    try:
        python = python_of(peer, work)
        model = model_of(peer, work, python, layers)
    except NotAvailable as problem:
        raise click.ClickException(f"{problem}; --no-peer leaves it out") from None
    return [python, "benchmarks/peer_genai.py", str(model), str(threads)]


def suffix(layers: int, block_size: int) -> str:
    """What tells files of this shape from those of the usual one."""
    text = "" if layers == LAYERS else f"_{layers}_layers"
    return text if block_size == BLOCK_SIZE else f"{text}_block_{block_size}"


def measure(workers: dict[str, Worker], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Runs of every worker in turns, the order reversed from round to round.

    All decode behind one prompt; the first round warms up, and holds the prefill.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    ids = np.random.default_rng(0).integers(1000, NUM_PLAIN_TOKENS - 1000, CONTEXT).tolist()
    for i in range(rounds + 1):
        for name in list(workers)[:: -1 if i % 2 else 1]:
            answer = workers[name].ask(ids=ids, decode=DECODE, mass=name == "mass")
            _log(f"round {i} {name}: {DECODE / sum(answer['decode_s']):.2f} tok/s")
            if i:
                runs[name].append(answer)
    return runs


def mass_pair(command: tuple[str, ...], *, mass_first: bool) -> dict[str, list[dict[str, Any]]]:
    """Runs with and without the mass, by two new processes on small pages.

    Where a process's memory comes to lie changes its speed by more than the mass does, for as long
    as it lives, and that depends on which was started first: so there are several pairs, started
    in both orders, rather than more rounds. Even so the reading of the weights drowns the mass:
    `mass_profile` leaves it out.
    """
    kinds = {"small_pages": "small", "mass": "mass"}
    order = list(kinds)[:: -1 if mass_first else 1]
    with contextlib.ExitStack() as loaded:
        workers = {name: loaded.enter_context(Worker(*command, kinds[name])) for name in order}
        return measure(workers, MASS_ROUNDS)


def mass_profile(bundle: Path, threads: int, *, mass_first: bool) -> float:
    """What the mass costs of a decode step, by the nodes that differ between the two graphs.

    Attention and what follows for the mass, less attention in the graph without, by the step of the
    latter; each graph in a process of its own that ONNX Runtime profiles.
    """
    found: dict[str, dict[str, float]] = {}
    for kind in ("mass", "small")[:: 1 if mass_first else -1]:
        command = [sys.executable, "-m", "benchmarks.onnx_worker", "profile", str(bundle)]
        command += [str(threads), kind, str(CONTEXT), str(PROFILED_STEPS)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found[kind] = json.loads(done.stdout.strip().splitlines()[-1])
        _log(f"profile {kind}: {found[kind]}")
    extra = found["mass"]["attention_us"] - found["small"]["attention_us"]
    return extra / found["small"]["step_us"]


def rate(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens per second of decoding: median, least and most over the rounds; median step.

    `cpu_ms`: processor time of a step in the best round, which other load disturbs least; it
    means something with one thread alone, since waiting threads spin.
    """
    rates = [DECODE / sum(run["decode_s"]) for run in runs]
    steps = [s for run in runs for s in run["decode_s"]]
    return {
        "decode_tok_s": statistics.median(rates),
        "decode_tok_s_min": min(rates),
        "decode_tok_s_max": max(rates),
        "step_ms": 1e3 * statistics.median(steps),
        "cpu_ms": 1e3 * min(run["cpu_s"] for run in runs) / DECODE,
        "prefill_ms": 1e3 * statistics.median(run["prefill_s"] for run in runs),
    }


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "out" / "peers")
@click.option("--layers", default=LAYERS, show_default=True)
@click.option("--block-size", default=BLOCK_SIZE, show_default=True)
@click.option("--threads", default=os.cpu_count(), show_default=True)
@click.option("--rounds", default=10, show_default=True)
@click.option("--peer/--no-peer", default=True, show_default=True)
@click.option("--reuse", is_flag=True, help="Keep the bundle of an earlier run, and its cost.")
def main(
    work: Path, layers: int, block_size: int, threads: int, rounds: int, peer: bool, reuse: bool
) -> None:
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bundle, cost = prepare(work, layers, block_size, reuse)
    theirs = prepare_peer(work, layers, block_size, threads) if peer else None
    command = (sys.executable, "-m", "benchmarks.onnx_worker", "serve", str(bundle), str(threads))
    with Worker(*command, "huge") as ours:
        with Worker(*theirs) if theirs else contextlib.nullcontext() as other:
            runs = measure({"ours": ours} | ({"peer": other} if other else {}), rounds)
        with Worker(*command, "small") as small:
            paged = measure({"ours": ours, "small_pages": small}, rounds)
            asked = [ours.ask(reinject=REINJECT, context=CONTEXT) for _ in range(20)]
    times = [answer["reinject_s"] for answer in asked]
    memory = runs["ours"][-1]["memory"] | {"huge_pages": ours.hello["huge_page_bytes"]}
    pairs = [mass_pair(command, mass_first=i % 2 == 1) for i in range(MASS_PAIRS)]
    profiles = [mass_profile(bundle, threads, mass_first=i % 2 == 1) for i in range(MASS_PROFILES)]
    result = summarise(runs, paged, pairs, profiles, cost, times, memory)
    result |= {"layers": layers, "block_size": block_size, "threads": threads, "rounds": rounds}
    name = "onnx_3b" + suffix(layers, block_size)
    name += "" if threads == os.cpu_count() else f"_{threads}_threads"
    publish(name, result, to_table(result))
    sys.exit(0 if all(v is not False for v in result["passed"].values()) else 6)


def summarise(
    runs: dict[str, list[dict[str, Any]]],
    paged: dict[str, list[dict[str, Any]]],
    pairs: list[dict[str, list[dict[str, Any]]]],
    profiles: list[float],
    cost: dict[str, Any],
    reinject_s: list[float],
    memory: dict[str, int],
) -> dict[str, Any]:
    """All numbers and gates; a gate that was not measured is None.

    `runs`: beside the peer; `paged`: the same engine beside one on small pages; `pairs`: with and
    without the mass; `profiles`: its cost by the nodes that differ, which the gate judges.
    """
    found = {**paged, **runs, "mass": [run for pair in pairs for run in pair["mass"]]}
    rates = {name: rate(found[name]) for name in found}
    step = rates["ours"]["step_ms"]
    costs = [paired_ratio(pair["mass"], pair["small_pages"]) - 1 for pair in pairs]
    whole_steps = statistics.geometric_mean(1 + cost for cost in costs) - 1
    mass = statistics.median(profiles)
    reinject_ms = 1e3 * statistics.median(reinject_s)
    ratio = cpu_ratio = None
    if "peer" in rates:
        cpu_ratio = rates["peer"]["cpu_ms"] / rates["ours"]["cpu_ms"]
        ratio = paired_ratio(runs["peer"], runs["ours"])
    return {
        "benchmark": "onnx_3b",
        "context": CONTEXT,
        "decode_tokens": DECODE,
        "build": cost,
        "rates": rates,
        "speed_ratio": ratio,
        "load_average": os.getloadavg()[0],
        "cpu_ratio": cpu_ratio,
        "mass_frac": mass,
        "mass_frac_of_profiles": profiles,
        "mass_frac_of_whole_steps": whole_steps,
        "mass_frac_of_pairs": costs,
        "huge_pages_ratio": paired_ratio(paged["small_pages"], paged["ours"]),
        "reinject_tokens": REINJECT,
        "reinject_ms": reinject_ms,
        "memory_bytes": memory,
        "passed": {
            "build_memory": cost["peak_rss_bytes"] <= BUILD_GATE_BYTES,
            "speed": None if ratio is None else ratio >= SPEED_GATE,
            "mass": mass <= MASS_GATE,
            "reinject": reinject_ms <= step,
        },
    }


def paired_ratio(slow: list[dict[str, Any]], fast: list[dict[str, Any]]) -> float:
    """Median over the rounds of the time of `slow` by the time of `fast` in the same round."""
    pairs = zip(slow, fast, strict=True)
    return statistics.median(sum(s["decode_s"]) / sum(f["decode_s"]) for s, f in pairs)


def to_table(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    build = result["build"]
    lines = [
        f"Random weights of the 3B shape, {result['layers']} layers, int4 in blocks of "
        f"{result['block_size']}, {result['threads']} threads, context {CONTEXT}, "
        f"{DECODE} decoded tokens, {result['rounds']} rounds in turns.",
        "",
        "| engine | decode tok/s (least - most) | step ms | processor ms | prefill ms |",
        "| --- | --- | --- | --- | --- |",
    ]
    names = {
        "ours": "la-trt",
        "peer": "onnxruntime-genai",
        "small_pages": "la-trt without huge pages",
        "mass": "la-trt without huge pages, with mass",
    }
    for name, label in names.items():
        if name in result["rates"]:
            r = result["rates"][name]
            lines.append(
                f"| {label} | {r['decode_tok_s']:.2f} ({r['decode_tok_s_min']:.2f} - "
                f"{r['decode_tok_s_max']:.2f}) | {r['step_ms']:.1f} | {r['cpu_ms']:.1f} "
                f"| {r['prefill_ms']:.0f} |"
            )
    ratio = result["speed_ratio"]
    by_cpu = "not measured" if ratio is None else f"{result['cpu_ratio']:.3f}"
    shown = "not measured" if ratio is None else f"{ratio:.3f}"
    lines += [
        "",
        f"- speed ratio, median of the rounds: {shown}",
        f"- the same by processor time of the best round: {by_cpu}",
        f"- load average at the end: {result['load_average']:.1f}",
        f"- huge pages: {result['huge_pages_ratio']:.3f} times the speed without "
        f"({result['memory_bytes']['huge_pages'] / GIB:.2f} GiB moved)",
        f"- mass: {100 * result['mass_frac']:+.2f} % of a decode step by the nodes that differ, "
        f"median of {_percent(result['mass_frac_of_profiles'])}",
        f"- mass by whole steps: {100 * result['mass_frac_of_whole_steps']:+.2f} %, mean of pairs "
        f"of processes {_percent(result['mass_frac_of_pairs'])}",
        f"- `kv` re-injection of {REINJECT} tokens: {result['reinject_ms']:.2f} ms",
        f"- build: {build['seconds']} s, peak {build['peak_rss_bytes'] / GIB:.2f} GiB "
        f"(anonymous {build['peak_anonymous_bytes'] / GIB:.2f} GiB)",
        f"- gates: {json.dumps(result['passed'])}",
    ]
    return "\n".join(lines)


def _percent(fractions: list[float]) -> str:
    return ", ".join(f"{100 * f:+.1f}" for f in fractions)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
