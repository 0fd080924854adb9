"""The records of `peers` as figures and as a table."""

from __future__ import annotations

import statistics
from datetime import datetime, timedelta
from typing import Any

from benchmarks.report import LEAST_VALUES, bounds_of

CONTEXTS = (512, 2048)
LONG = timedelta(hours=1)  # between two records: the machine may have been another


def rates_of(run: dict[str, Any], context: int) -> dict[str, float]:
    """Tokens a second of one prompt, by phase."""
    return {
        "decode": len(run["decode_s"]) / sum(run["decode_s"]),
        "prefill": context / run["prefill_s"],
    }


def figures(record: dict[str, Any], context: int) -> dict[str, Any]:
    """Medians of one engine and context, and the spread over its prompts."""
    runs = record["runs"][str(context)]
    found = [rates_of(run, context) for run in runs]
    decode = [each["decode"] for each in found]
    return {
        "decode_tok_s": statistics.median(decode),
        "decode_tok_s_min": min(decode),
        "decode_tok_s_max": max(decode),
        "prefill_tok_s": statistics.median(each["prefill"] for each in found),
        "peak_rss_gb": max(run["peak_rss_bytes"] for run in runs) / 1e9,
        "load_s": record["load_s"],
    }


def is_ours(name: str) -> bool:
    return name.startswith("la-trt")


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures by engine and context; `ratio_to_best_peer` among peers of the same weight bits."""
    engines: dict[str, Any] = {}
    best: dict[tuple[int, int], float] = {}
    for record in records:
        if "runs" not in record:
            continue
        found = {str(c): figures(record, c) for c in CONTEXTS}
        kept = {name: record.get(name) for name in ("bits", "check", "time", "load_average")}
        engines[record["engine"]] = {**kept, **found}
        if not is_ours(record["engine"]):
            for context in CONTEXTS:
                key = (record["bits"], context)
                best[key] = max(best.get(key, 0.0), found[str(context)]["decode_tok_s"])
    for entry in engines.values():
        for context in CONTEXTS:
            peer = best.get((entry["bits"], context))
            rate = entry[str(context)]["decode_tok_s"]
            entry[str(context)]["ratio_to_best_peer"] = None if peer is None else rate / peer
    for record in records:
        if "alone" in record:
            entry = engines[record["engine"]]
            entry.update(record["alone"])
            read = statistics.median(p["read_gb_s"] for p in record["probes"])
            rate = entry[str(CONTEXTS[0])]["decode_tok_s"]
            entry["bandwidth_frac"] = rate * record["weight_bytes"] / 1e9 / read
            entry["read_gb_s"] = read
    missing = {r["engine"]: r["cause"] for r in records if "cause" in r}
    return {"benchmark": "peers", "engines": engines, "missing": missing}


def _mass(entry: dict[str, Any]) -> str:
    text = f"{100 * entry['mass_overhead_frac']:+.1f} %"
    if "mass_overhead_95" not in entry:
        return text
    low, high = entry["mass_overhead_95"]
    bounds = bounds_of(entry.get("mass_pairs", LEAST_VALUES))  # older ones: hundreds
    return f"{text} ({100 * low:+.1f} to {100 * high:+.1f}, {bounds})"


def _age(engines: dict[str, Any]) -> list[str]:
    """When the records were made, as far as they say so, and how busy the machine was."""
    times = {n: datetime.fromisoformat(e["time"]) for n, e in engines.items() if e.get("time")}
    lines = []
    if times:
        newest = max(times.values())
        lines.append(f"- last record: {newest:%Y-%m-%d %H:%M} UTC")
        old = [f"{n} {t:%Y-%m-%d %H:%M}" for n, t in times.items() if newest - t > LONG]
        if old:
            lines.append(f"- made more than an hour before it: {', '.join(old)}")
    if unknown := [name for name in engines if name not in times]:
        lines.append(f"- kept from an earlier run, of unknown time: {', '.join(unknown)}")
    loads = [e["load_average"] for e in engines.values() if e.get("load_average") is not None]
    if loads:
        lines.append(f"- load average at the end of each: {min(loads):.1f} to {max(loads):.1f}")
    return lines


def to_table(result: dict[str, Any]) -> str:
    """Markdown: a row for each engine and context, then what is ours alone, then who is missing."""
    lines = [
        "Random weights of the 3B shape, batch 1, greedy; median over prompts (least - most). "
        "`ratio`: decoding against the best peer of as many weight bits.",
        "",
        "| engine | context | decode tok/s | ratio | prefill tok/s | peak RSS GB | load s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in result["engines"].items():
        for context in CONTEXTS:
            f = entry[str(context)]
            ratio = f["ratio_to_best_peer"]
            lines.append(
                f"| {name} | {context} | {f['decode_tok_s']:.2f} ({f['decode_tok_s_min']:.2f} - "
                f"{f['decode_tok_s_max']:.2f}) | {'' if ratio is None else f'{ratio:.2f}'} "
                f"| {f['prefill_tok_s']:.0f} | {f['peak_rss_gb']:.2f} | {f['load_s']:.1f} |"
            )
    lines.append("")
    for name, entry in result["engines"].items():
        if "bandwidth_frac" in entry:
            lines.append(
                f"- {name}: {100 * entry['bandwidth_frac']:.0f} % of the read bandwidth beside it "
                f"({entry['read_gb_s']:.1f} GB/s, median); mass "
                f"{_mass(entry)} of a step; `kv` re-injection of 256 "
                f"tokens {entry['kv_reinject_steps']:.3f} steps; batch 8 has "
                f"{entry['batch8_gain']:.2f} times the throughput of batch 1"
            )
    lines += [f"- {name}: {entry['check']}" for name, entry in result["engines"].items()]
    lines += _age(result["engines"])
    lines += [f"- not measured: {name}: {cause}" for name, cause in result["missing"].items()]
    return "\n".join(lines)
