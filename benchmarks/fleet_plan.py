"""How many replicas a number of requests a day takes, and what they cost.

python -m benchmarks.fleet_plan

The tiny model: from benchmarks/results/serve_speed.json, measured. The 7B model on GPUs: floors by
arithmetic on data-sheet peaks (`python -m benchmarks.roofline`), **not measured**: a real GPU
needs more. Prices are inputs, not quotations: give yours.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import click

from benchmarks.report import RESULTS
from benchmarks.roofline import GPUS, Gpu, Work, attention_vision, forward, shape_7b

DAY_S = 86_400
REQUESTS_A_DAY = (1_000, 10_000, 100_000, 1_000_000)
_SPEED = "serve_speed.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`peak`: busiest hour over the day's mean. `load_frac`: of a replica's throughput, at peak."""

    peak: float = 3.0
    load_frac: float = 0.7

    def replicas(self, requests_a_day: int, replica_req_s: float) -> int:
        """Replicas for the peak, at least two, so that one may be lost."""
        wanted = requests_a_day / DAY_S * self.peak / (replica_req_s * self.load_frac)
        return max(2, math.ceil(wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a request to the 7B model is: an image, a prompt, an answer that looks again once."""

    visual_tokens: int = 1024
    text_tokens: int = 64
    answer_tokens: int = 300
    copied_tokens: int = 1024  # by embed


def vision_floor(num_patches: int) -> Work:
    """The vision tower over the patches of one image: linear layers and attention, 16 bits."""
    v = shape_7b().vision
    weights = 4 * v.hidden_size**2 + 3 * v.hidden_size * v.intermediate_size
    linears = Work(num_bytes=2.0 * weights, ops=2.0 * weights * num_patches)
    full = len(v.fullatt_block_indexes)
    whole = attention_vision(v, num_patches, num_patches).times(full)
    windows = attention_vision(v, num_patches, 64).times(v.depth - full)
    return linears.times(v.depth) + whole + windows


def floor_s(gpu: Gpu, question: Question, batch: int, weight_bits: float) -> float:
    """Seconds of a GPU for one of `batch` requests that run together. No run takes fewer."""
    t = shape_7b().text
    length = question.visual_tokens + question.text_tokens
    common = {"num_visual": 0, "kv_bits": 16, "weight_bits": weight_bits}
    prompt = forward(t, length, length, logits=True, **common)  # type: ignore[arg-type]
    again = length + question.answer_tokens // 2 + question.copied_tokens
    copy = forward(t, question.copied_tokens, again, logits=False, **common)  # type: ignore[arg-type]
    mean = length + question.copied_tokens // 2 + question.answer_tokens // 2
    step = forward(t, 1, mean, logits=True, **common)  # type: ignore[arg-type]
    empty = forward(t, 1, 1, logits=True, **common)  # type: ignore[arg-type]
    # The weights cross the bus once for all sequences of a step, each KV cache for its own.
    together = Work(
        num_bytes=empty.num_bytes + batch * (step.num_bytes - empty.num_bytes),
        ops=batch * step.ops,
    )
    decode_us = question.answer_tokens * together.floor_us(gpu) / batch
    once = [vision_floor(4 * question.visual_tokens), prompt, copy]
    return (sum(work.floor_us(gpu) for work in once) + decode_us) / 1e6


def measured_tiny() -> tuple[float, dict[str, object]]:
    """Requests a second of a replica of the tiny model with 8 at once, and the whole result."""
    result = json.loads((RESULTS / _SPEED).read_text())
    return result["throughput"]["tok_s_8"]["median"] / result["max_tokens"], result


def table(name: str, rows: list[tuple[str, float, float]], demand: Demand) -> str:
    """`rows`: what a replica is, its requests a second, its price an hour."""
    days = [f"{n:,} a day" for n in REQUESTS_A_DAY]
    lines = [f"### {name}", ""]
    head = ["replica", "requests/s", "price/hour", "per 1,000 requests", *days]
    lines += ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for what, req_s, price in rows:
        unit = price / 3600 / (req_s * demand.load_frac) * 1000
        cells = [what, f"{req_s:.3g}", f"{price:.3g}", f"{unit:.3g}"]
        for num in REQUESTS_A_DAY:
            replicas = demand.replicas(num, req_s)
            cells.append(f"{replicas} ({replicas * price * 24:,.0f}/day)")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--cpu-price", default=0.05, show_default=True, help="Of a core, an hour.")
@click.option(
    "--gpu-price",
    "gpu_prices",
    type=(str, float),
    multiple=True,
    default=(("L4", 0.8), ("A100", 2.5), ("H100", 4.0)),
    show_default=True,
    help="Of a GPU whose name begins so, an hour; repeatable.",
)
@click.option("--batch", default=16, show_default=True, help="Requests that a GPU runs at once.")
def main(cpu_price: float, gpu_prices: tuple[tuple[str, float], ...], batch: int) -> None:
    """Print both plans as Markdown."""
    click.echo(plan(cpu_price, gpu_prices, batch))


def plan(cpu_price: float, gpu_prices: tuple[tuple[str, float], ...], batch: int) -> str:
    """Both plans as Markdown."""
    demand, question = Demand(), Question()
    req_s, result = measured_tiny()
    cores = int(str(result["threads"]))
    tiny = [(f"{cores} core{'s' * (cores > 1)}, native", req_s, cores * cpu_price)]
    floors = []
    for begins, price in gpu_prices:
        gpu = next(g for g in GPUS if g.name.startswith(begins))
        for label, bits in (("bf16", 16.0), ("int4", 4.5)):
            floors.append((f"{gpu.name}, {label}", 1 / floor_s(gpu, question, batch, bits), price))
    return "\n\n".join(
        (
            table("The tiny model, measured", tiny, demand),
            table(f"The 7B model, floors, {batch} at once (not measured)", floors, demand),
        )
    )


if __name__ == "__main__":
    main()
