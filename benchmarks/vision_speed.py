"""The 3B vision tower on the CPU: the native engine (int8) beside transformers (bf16).

    python benchmarks/vision_speed.py [--work DIR] [--side 448] [--rounds 7]

Random weights, the same for both; one image of --side by --side pixels. Both engines stay loaded,
each in its own process and environment, and answer in turns, so that both see the same machine.
Nothing is written unless their embeddings agree, to a relative error of --max-error. Ends with
one JSON line.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.make_3b import make, shape_3b
from benchmarks.native_bundle import pack
from benchmarks.onnx_3b import Worker
from benchmarks.peer_engines import PEERS, ROOT, python_of
from benchmarks.peer_probe import machine_peaks
from benchmarks.report import describe_machine, write_results
from la_trt.config import VisionConfig

SCRIPT = "benchmarks/peer_vision.py"


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
    "--max-error", default=0.1, show_default=True, help="|ours - theirs| / |theirs|, all values."
)
def main(work: Path, side: int, threads: int, rounds: int, max_error: float) -> None:
    work = work.resolve()
    config = shape_3b(num_layers=1)
    ckpt, bundle = work / "tower", work / "tower_int8"
    if not (ckpt / "tokenizer.json").exists():
        make(ckpt, config)
    if not bundle.exists():
        pack(ckpt, bundle, "int8")
    peer = next(p for p in PEERS if p.environment == "transformers")
    workers = {
        "la-trt int8": Worker(sys.executable, SCRIPT, "ours", str(bundle), str(threads)),
        "transformers bf16": Worker(
            python_of(peer, work), SCRIPT, "transformers", str(ckpt), str(threads)
        ),
    }
    grid = [1, side // config.vision.patch_size, side // config.vision.patch_size]
    patches = grid[1] * grid[2]
    pixels = work / "pixels.npy"
    rng = np.random.default_rng(0)
    np.save(pixels, rng.standard_normal((patches, config.vision.patch_dim)).astype(np.float32))
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    embeds = {name: work / f"embeds_{i}.npy" for i, name in enumerate(workers)}
    before = machine_peaks(threads)
    for i in range(rounds + 1):  # the first warms up
        for name, worker in workers.items():
            answer = worker.ask(pixels=str(pixels), grid=grid, embeds=str(embeds[name]))
            if i:
                seconds[name].append(answer["seconds"])
                click.echo(f"  {name}: {answer['seconds']:.2f} s", err=True)
    ours, theirs = (np.load(path) for path in embeds.values())
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    if not error <= max_error:
        raise click.ClickException(f"embeddings differ by {error:.3g} of their norm")
    after = machine_peaks(threads)
    ratios = [t / o for o, t in zip(*seconds.values(), strict=True)]
    ops = linear_ops(config.vision, patches)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    peak = statistics.median((before["dot_gop_s_best"], after["dot_gop_s_best"]))
    rate = {name: ops / s / 1e9 for name, s in median.items()}
    result = {
        "benchmark": "vision_speed",
        "side": side,
        "patches": patches,
        "threads": threads,
        "seconds": seconds,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "relative_error": error,
        "gop_s": rate,
        "int8_dot_gop_s_peak": peak,
        "versions": {name: worker.hello["version"] for name, worker in workers.items()},
        "load_average": os.getloadavg()[0],
        "machine": describe_machine(),
    }
    for worker in workers.values():
        worker.close()
    lines = [
        f"3B vision tower, one image of {side} x {side} ({patches} patches, "
        f"{ops / 1e12:.2f} Top in its matrices), {threads} threads, in turns, {rounds} rounds.",
        "",
        "| engine | median s (least - most) | Gop/s |",
        "| --- | --- | --- |",
    ]
    for name, times in seconds.items():
        spread = f"{min(times):.2f} - {max(times):.2f}"
        lines.append(f"| {name} | {median[name]:.2f} ({spread}) | {rate[name]:.0f} |")
    lines += [
        "",
        f"- ratio in pairs: {result['ratio']:.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
        f"- ours at {100 * rate['la-trt int8'] / peak:.0f} % of the int8 dot products that the "
        f"machine can do beside it ({peak:.0f} Gop/s)",
        f"- embeddings differ by {100 * error:.2f} % of their norm",
    ]
    table = "\n".join(lines)
    write_results("vision_speed", result, table)
    click.echo(table, err=True)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
