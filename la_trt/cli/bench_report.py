"""Numbers of a measurement as plain values, as a table, and as a picture."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import la_trt
from la_trt.cli.checks import memory, processor
from la_trt.cli.measure import Measured
from la_trt.cli.terminal import quiet_drawing

if TYPE_CHECKING:
    from la_trt.api import LookAgain
    from la_trt.processor.types import Prompt

# Name -> share of the runs that are as good or better, in percent.
QUANTILES = {"median": 50, "p90": 90, "p99": 99}
RATES = ("decode_tok_s",)  # more is better
STAGES = ("vision_ms", "prefill_ms", "decode_ms", "reinject_ms")
# Metric -> (label, decimals).
ROWS = {
    "ttft_ms": ("first token, ms", 1),
    "tpot_ms": ("per token, ms", 2),
    "gap_ms": ("between tokens, nothing put in, ms", 2),
    "reinject_gap_ms": ("between tokens, looking again, ms", 2),
    "vision_ms": ("stage: vision, ms", 1),
    "prefill_ms": ("stage: prefill, ms", 1),
    "decode_ms": ("stage: decode, ms", 1),
    "reinject_ms": ("stage: re-injection, ms", 1),
    "total_ms": ("whole answer, ms", 1),
    "decode_tok_s": ("decode, tokens/s", 1),
    "peak_rss_mib": ("peak memory, MiB", 0),
}


def facts(
    model: LookAgain,
    request: Prompt,
    measured: Mapping[str, Measured],
    *,
    runs: int,
    warmup: int,
) -> dict[str, Any]:
    """Everything that was found, with what it was found on; plain JSON values."""
    limits = model.engine.limits
    return {
        "la_trt_version": la_trt.__version__,
        "command": " ".join(sys.argv[1:]),
        "machine": {"processor": processor(), "memory": memory()},
        "engine": {
            "name": limits.name,
            "device": limits.device,
            "dtype": limits.dtype,
            **limits.details,
        },
        "prompt_tokens": len(request.input_ids),
        "visual_tokens": request.num_visual,
        "runs": runs,
        "warmup": warmup,
        "policies": {name: _summary(m) for name, m in measured.items()},
    }


def _summary(measured: Measured) -> dict[str, Any]:
    first = measured.results[0]
    return {
        "policy": measured.policy,
        "completion_tokens": first.usage.completion_tokens,
        "reinjected_tokens": first.usage.reinjected_tokens,
        "reinjections": sum(not r.skipped for r in first.reinjections),
        "finish_reason": first.finish_reason,
        "metrics": {
            name: _quantiles(values, rate=name in RATES)
            for name, values in _metrics(measured).items()
        },
    }


def _metrics(measured: Measured) -> dict[str, list[float]]:
    timings = [result.timing for result in measured.results]
    metrics = {
        name: [float(getattr(t, name)) for t in timings]
        for name in ("ttft_ms", "tpot_ms", *STAGES, "total_ms")
    }
    metrics["gap_ms"] = measured.gaps_ms
    metrics["reinject_gap_ms"] = measured.reinject_gaps_ms
    metrics["decode_tok_s"] = [1e3 / t.tpot_ms for t in timings if t.tpot_ms > 0]
    metrics["peak_rss_mib"] = [b / 2**20 for b in measured.peak_rss_bytes]
    return {name: metrics[name] for name in ROWS}


def _quantiles(values: Sequence[float], *, rate: bool = False) -> dict[str, float | int | None]:
    """Median, p90, p99 and the number of values; None where there were none.

    p99 is the slow end: 99 % of the values are at most that, or, of a rate, at least that.
    """
    found: dict[str, float | int | None] = {
        name: round(float(np.percentile(values, 100 - q if rate else q)), 4) if values else None
        for name, q in QUANTILES.items()
    }
    found["n"] = len(values)
    return found


def table(facts: Mapping[str, Any], width: int | None = None) -> str:
    """Metrics down, policies across; each cell is median / p90 / p99, p99 the slow end.

    `width`: characters that a line may have. Where the table has more, each policy gets a table
    of its own.
    """
    policies = facts["policies"]
    engine = facts["engine"]
    lines = [
        f"engine {engine['name']} ({engine['device']}, {engine['dtype']}), "
        f"prompt {facts['prompt_tokens']} tokens, {facts['visual_tokens']} of them visual; "
        f"{facts['runs']} runs after {facts['warmup']}",
        facts["machine"]["processor"],
    ]
    whole = _table(policies)
    if width is None or len(whole[0]) <= width:
        return "\n".join([*lines, *whole])
    head = [part for line in lines for part in textwrap.wrap(line, width)]
    single = [line for name in policies for line in ("", *_table({name: policies[name]}))]
    return "\n".join([*head, *single])


def _table(policies: Mapping[str, Any]) -> list[str]:
    """Lines of one width, the policies' names in the first."""
    found = policies.values()
    rows = [["median / p90 / p99", *policies]]
    for metric, (label, decimals) in ROWS.items():
        rows.append([label, *(_cell(policy["metrics"][metric], decimals) for policy in found)])
    rows.append(["answer tokens", *(str(policy["completion_tokens"]) for policy in found)])
    rows.append(["second looks", *(str(policy["reinjections"]) for policy in found)])
    rows.append(["visual tokens put in", *(str(policy["reinjected_tokens"]) for policy in found)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (cell.rjust(w) for cell, w in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *rest]))
    return lines


def _cell(quantiles: Mapping[str, float | None], decimals: int) -> str:
    if quantiles["median"] is None:
        return "-"
    return " / ".join(f"{quantiles[q]:.{decimals}f}" for q in QUANTILES)


def plot(path: Path, facts: Mapping[str, Any]) -> None:
    """A PNG: stages of an answer stacked by policy, and token latencies with their spread."""
    quiet_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from la_trt.files.atomic import atomic_file

    figure = Figure(figsize=(9.5, 3.6), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _plot_stages(left, facts["policies"])
    _plot_gaps(right, facts["policies"])
    engine = facts["engine"]
    figure.suptitle(
        f"la-trt bench: {engine['name']} on {engine['device']}, {engine['dtype']}, "
        f"{facts['visual_tokens']} visual tokens, {facts['runs']} runs",
        fontsize=10,
        parse_math=False,
    )
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _plot_stages(axis: Any, policies: Mapping[str, Any]) -> None:
    names = list(policies)
    bottom = np.zeros(len(names))
    for stage in STAGES:
        values = np.array([policies[n]["metrics"][stage]["median"] or 0.0 for n in names])
        axis.bar(names, values, bottom=bottom, label=stage.removesuffix("_ms"), width=0.6)
        bottom += values
    axis.set_ylabel("ms an answer (median)")
    axis.set_ylim(top=max(float(bottom.max()) * 1.15, 1e-3))
    axis.legend(fontsize=8, ncols=len(STAGES), loc="upper center")
    axis.tick_params(labelsize=8)


def _plot_gaps(axis: Any, policies: Mapping[str, Any]) -> None:
    names = list(policies)
    places = np.arange(len(names))
    kinds = (("gap_ms", "nothing put in", -0.12), ("reinject_gap_ms", "looking again", 0.12))
    for metric, label, shift in kinds:
        found = [policies[n]["metrics"][metric] for n in names]
        there = [i for i, q in enumerate(found) if q["median"] is not None]
        median = np.array([found[i]["median"] for i in there])
        upper = np.array([found[i]["p99"] for i in there]) - median
        axis.errorbar(
            places[there] + shift, median, yerr=[upper * 0, upper], fmt="o", capsize=3, label=label
        )
    axis.set_xticks(places, names)
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("ms between tokens (median to p99)")
    axis.legend(fontsize=8)
    axis.tick_params(labelsize=8)
