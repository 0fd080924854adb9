"""Draws the records of `peers` as bars: decoding and prefill by engine.

    python -m benchmarks.peer_plot [--name peers] [--output docs/images/speed.png]

Medians behind 512 tokens, and thin lines from the least to the greatest of its prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.peer_table import is_ours, rates_of
from benchmarks.report import RESULTS

CONTEXT = 512
OURS, PEERS, SPREAD = "#0b6e99", "#b9c3cc", "#3c4650"


def bars(axes: Axes, engines: dict[str, Any], runs: dict[str, Any], kind: str) -> None:
    """One engine a bar, the fastest on top; the rate in tokens per second at its end."""
    found = {name: [rates_of(run, CONTEXT)[kind] for run in runs[name]] for name in engines}
    middle = {name: engines[name][str(CONTEXT)][f"{kind}_tok_s"] for name in engines}
    names = sorted(engines, key=middle.__getitem__)
    most = max(max(values) for values in found.values())
    for at, name in enumerate(names):
        axes.barh(at, middle[name], color=OURS if is_ours(name) else PEERS, height=0.72)
        axes.plot([min(found[name]), max(found[name])], [at, at], color=SPREAD, linewidth=1)
        end, digits = max(found[name]) + 0.015 * most, 0 if middle[name] >= 100 else 1
        axes.text(end, at, f"{middle[name]:.{digits}f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(0, 1.1 * most)
    axes.set_title(f"{kind}, tokens a second", loc="left", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)


@click.command(help=__doc__)
@click.option("--name", default="peers", show_default=True, help="Of the results.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("docs/images/speed.png"),
    show_default=True,
)
def main(name: str, output: Path) -> None:
    result = json.loads((RESULTS / f"{name}.json").read_text())
    engines = result["engines"]
    runs = {r["engine"]: r["runs"][str(CONTEXT)] for r in result["records"] if "runs" in r}
    figure = Figure(figsize=(9.6, 0.34 * len(engines) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, 2), ("decode", "prefill"), strict=True):
        bars(axes, engines, runs, kind)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130, metadata={"Software": None})
    click.echo(output)


if __name__ == "__main__":
    main()
