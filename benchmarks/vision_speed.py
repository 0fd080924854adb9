"""The 3B vision tower on the CPU: the native engine (int8, blocks of 32 and of 128; bf16) beside
transformers (bf16, float32).

    python benchmarks/vision_speed.py [--work DIR] [--side 448] [--rounds 7] [--name NAME]

Random weights, the same for all; one image of --side by --side pixels. All engines stay loaded,
each in its own process and environment, and answer in turns, so that all see the same machine.
Nothing is written unless their embeddings agree with float32's, to a relative error of
--max-error. Ends with one JSON line.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.make_3b import make, shape_3b
from benchmarks.native_bundle import pack
from benchmarks.peer_engines import PEERS, ROOT, python_of
from benchmarks.peer_probe import machine_peaks
from benchmarks.report import publish
from benchmarks.worker import Worker
from build_engines.quantize import Quant
from la_trt.config import VisionConfig

SCRIPT = "benchmarks/peer_vision.py"
OURS: dict[str, tuple[Quant, int]] = {  # how weights are quantised, and how many share a scale
    "la-trt int8": ("int8", 32),
    "la-trt int8 block 128": ("int8", 128),
    "la-trt bf16": ("none", 32),
}
REFERENCE = "transformers float32"
DTYPES = {"transformers bf16": "bfloat16", REFERENCE: "float32"}


def linear_ops(vision: VisionConfig, patches: int) -> float:
    """Operations of the tower's matrices for so many patches; attention's few are left out."""
    e, f, merged = vision.hidden_size, vision.intermediate_size, vision.spatial_merge_size**2
    block = 4 * e * e + 3 * e * f
    merger = merged * e * merged * e + merged * e * vision.out_hidden_size
    macs = patches * (vision.patch_dim * e + vision.depth * block) + patches / merged * merger
    return 2.0 * macs


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "out" / "peers")
@click.option("--side", default=448, show_default=True, help="Of the image, pixels.")
@click.option("--threads", default=os.cpu_count(), show_default=True)
@click.option("--rounds", default=7, show_default=True, help="Answers of each engine.")
@click.option(
    "--max-error", default=0.1, show_default=True, help="|x - float32| / |float32|, all values."
)
@click.option("--name", default="vision_speed", show_default=True, help="Of the results.")
def main(work: Path, side: int, threads: int, rounds: int, max_error: float, name: str) -> None:
    work = work.resolve()
    config = shape_3b(num_layers=1)
    ckpt = work / "tower"
    if not (ckpt / "tokenizer.json").exists():
        make(ckpt, config)
    peer = next(p for p in PEERS if p.environment == "transformers")
    python = python_of(peer, work)
    commands = {}
    for ours, (quant, block_size) in OURS.items():
        bundle = work / (f"tower_int8_{block_size}" if quant == "int8" else "tower_bf16")
        if not bundle.exists():
            pack(ckpt, bundle, quant, block_size, dtype="bfloat16")
        commands[ours] = (sys.executable, SCRIPT, "ours", str(bundle), str(threads))
    for theirs, dtype in DTYPES.items():
        commands[theirs] = (python, SCRIPT, dtype, str(ckpt), str(threads))
    grid = [1, side // config.vision.patch_size, side // config.vision.patch_size]
    patches = grid[1] * grid[2]
    pixels = work / "pixels.npy"
    rng = np.random.default_rng(0)
    np.save(pixels, rng.standard_normal((patches, config.vision.patch_dim)).astype(np.float32))
    seconds: dict[str, list[float]] = {engine: [] for engine in commands}
    embeds = {engine: work / f"embeds_{i}.npy" for i, engine in enumerate(commands)}
    with contextlib.ExitStack() as loaded:
        workers = {e: loaded.enter_context(Worker(*words)) for e, words in commands.items()}
        before = machine_peaks(threads)
        for i in range(rounds + 1):  # the first warms up
            for engine, worker in workers.items():
                answer = worker.ask(pixels=str(pixels), grid=grid, embeds=str(embeds[engine]))
                if i:
                    seconds[engine].append(answer["seconds"])
                    click.echo(f"  {engine}: {answer['seconds']:.2f} s", err=True)
        after = machine_peaks(threads)
    values = {engine: np.load(path) for engine, path in embeds.items()}
    norm = np.linalg.norm(values[REFERENCE])
    errors = {e: float(np.linalg.norm(v - values[REFERENCE]) / norm) for e, v in values.items()}
    if not max(errors.values()) <= max_error:
        raise click.ClickException(f"embeddings differ from {REFERENCE}'s by {errors}")
    ratios = {
        ours: {
            theirs: [t / o for o, t in zip(seconds[ours], seconds[theirs], strict=True)]
            for theirs in DTYPES
        }
        for ours in OURS
    }
    ops = linear_ops(config.vision, patches)
    median = {engine: statistics.median(times) for engine, times in seconds.items()}
    peak = statistics.median((before["dot_gop_s_best"], after["dot_gop_s_best"]))
    rate = {engine: ops / s / 1e9 for engine, s in median.items()}
    result = {
        "benchmark": name,
        "side": side,
        "patches": patches,
        "threads": threads,
        "seconds": seconds,
        "ratio": {
            ours: {t: statistics.median(r) for t, r in each.items()}
            for ours, each in ratios.items()
        },
        "ratio_min": {o: {t: min(r) for t, r in each.items()} for o, each in ratios.items()},
        "ratio_max": {o: {t: max(r) for t, r in each.items()} for o, each in ratios.items()},
        "relative_error": errors,
        "gop_s": rate,
        "dot_gop_s_peak": peak,
        "versions": {engine: worker.hello["version"] for engine, worker in workers.items()},
        "load_average": os.getloadavg()[0],
    }
    lines = [
        f"3B vision tower, one image of {side} x {side} ({patches} patches, "
        f"{ops / 1e12:.2f} Top in its matrices), {threads} threads, in turns, {rounds} rounds.",
        "",
        "| engine | median s (least - most) | Gop/s |",
        "| --- | --- | --- |",
    ]
    for engine, times in seconds.items():
        spread = f"{min(times):.2f} - {max(times):.2f}"
        lines.append(f"| {engine} | {median[engine]:.2f} ({spread}) | {rate[engine]:.0f} |")
    lines.append("")
    for ours in OURS:
        for theirs, each in ratios[ours].items():
            lines.append(
                f"- {ours} {statistics.median(each):.2f} times as fast as {theirs}, in pairs "
                f"({min(each):.2f} to {max(each):.2f}, least to greatest)"
            )
        lines.append(
            f"- {ours} at {100 * rate[ours] / peak:.0f} % of the dot products that the machine can "
            f"do beside it ({peak:.0f} Gop/s)"
        )
    for engine in (*OURS, "transformers bf16"):
        lines.append(
            f"- embeddings of {engine} differ from {REFERENCE}'s by {100 * errors[engine]:.2f} % "
            "of their norm"
        )
    publish(name, result, "\n".join(lines))


if __name__ == "__main__":
    main()
