"""The results as pictures, after the paper's Figures 1, 2, 6, 7 and 9."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from la_trt.files.atomic import atomic_file

_DPI = 130
_BINS = 5


def draw_all(values: Mapping[str, Any], directory: Path) -> list[str]:
    """The names of the pictures that were drawn; those without data are left out."""
    drawn = []
    pictures: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
        "accuracy.png": accuracy,
        "route.png": percents,
        "dials.png": dials,
        "attention.png": attention,
        "hallucination.png": hallucination,
        "brpo.png": brpo,
    }
    for name, draw in pictures.items():
        figure = draw(values)
        if figure is None:
            continue
        buffer = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
        with atomic_file(directory / name) as file:
            file.write(buffer.getvalue())
        drawn.append(name)
    return drawn


def accuracy(values: Mapping[str, Any]) -> Figure | None:
    """Accuracy and CHAIRi of every variant on test-inverted, with intervals."""
    rows = [
        (name, of["test-inverted"])
        for name, of in values["variants"].items()
        if "test-inverted" in of
    ]
    if not rows:
        return None
    figure = Figure(figsize=(9, 0.35 * len(rows) + 1.4), layout="constrained")
    for axes, metric in zip(
        figure.subplots(1, 2, sharey=True), ("accuracy", "CHAIRi"), strict=True
    ):
        _bars(axes, [name for name, _ in rows], [of[metric] for _, of in rows])
        axes.set_xlabel(f"{metric}, %")
        axes.invert_yaxis()
    figure.suptitle("test-inverted, mean over seeds with 95 % intervals")
    return figure


def _bars(axes: Any, names: Sequence[str], of: Sequence[Mapping[str, Any]]) -> None:
    middle = np.array([100 * v["value"] for v in of])
    around = np.array([[100 * v["low"] for v in of], [100 * v["high"] for v in of]])
    errors = np.maximum(np.stack([middle - around[0], around[1] - middle]), 0)
    axes.barh(range(len(names)), middle, color="#88a9d0")
    axes.errorbar(middle, range(len(names)), xerr=errors, fmt="none", ecolor="#222", capsize=2)
    axes.set_yticks(range(len(names)), names)


def percents(values: Mapping[str, Any]) -> Figure | None:
    """Accuracy and CHAIRi against the share that ROUTE puts in (the paper's Table 5)."""
    points = [
        (float(name.removeprefix("ROUTE ")), of["test-inverted"])
        for name, of in values["variants"].items()
        if name.startswith("ROUTE ") and "test-inverted" in of
    ]
    if len(points) < 2:
        return None
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "CHAIRi"), strict=True):
        _line(axes, [m for m, _ in points], [of[metric] for _, of in points], "ROUTE")
        random = values["variants"].get("random 50", {}).get("test-inverted")
        if random is not None:
            axes.plot(50, 100 * random[metric]["value"], "x", color="#b33", label="random")
        axes.set(xlabel="visual tokens put in, %", ylabel=f"{metric}, %")
        axes.legend()
    return figure


def _line(axes: Any, x: Sequence[float], of: Sequence[Mapping[str, Any]], label: str) -> None:
    axes.plot(x, [100 * v["value"] for v in of], "o-", label=label)
    axes.fill_between(x, [100 * v["low"] for v in of], [100 * v["high"] for v in of], alpha=0.2)


def dials(values: Mapping[str, Any]) -> Figure | None:
    """What COPY has more than text-only, at every point of the dials."""
    points = [(label, of["difference"]) for label, of in values["dials"].items() if of]
    if not points:
        return None
    figure = Figure(figsize=(7, 0.35 * len(points) + 1.2), layout="constrained")
    axes = figure.subplots()
    _bars(axes, [label for label, _ in points], [of for _, of in points])
    axes.axvline(0, color="#222", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("COPY minus text-only, points of accuracy, test-inverted")
    return figure


def attention(values: Mapping[str, Any]) -> Figure | None:
    """Attention to the image against generated tokens, and what the theory predicts."""
    if not values["attention"]:
        return None
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for k, (name, of) in enumerate(values["attention"].items()):
        share, theory = (_over_seeds(of["curves"], key) for key in ("share", "theory"))
        colour = f"C{k}"
        axes.plot(share, color=colour, label=name)
        axes.plot(theory, color=colour, linestyle=":", linewidth=1)
    axes.set(
        xlabel="generated tokens",
        ylabel="attention on visual tokens",
        title="mean over layers, heads and answers; dotted: visual share of the context",
    )
    axes.legend()
    return figure


def _over_seeds(curves: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """The mean of the seeds' curves as far as all of them reach."""
    shortest = min(len(curve[key]) for curve in curves)
    mean: np.ndarray = np.mean([curve[key][:shortest] for curve in curves], axis=0)
    return mean


def hallucination(values: Mapping[str, Any]) -> Figure | None:
    """Share of hallucinated kinds against the length of the description, in equal groups."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    nums = []
    for name, of in values["attention"].items():
        points = by_length(of["described"])
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), "o-", label=name)
            nums.append(len(of["described"]) // _BINS)
    if not nums:
        return None
    axes.set(xlabel="tokens of the answer", ylabel="CHAIRi, %")
    axes.set_title(f"{min(nums)} answers a point: what lies between lines may be noise", fontsize=9)
    axes.legend()
    return figure


def by_length(described: Sequence[Sequence[float]], bins: int = _BINS) -> list[tuple[float, float]]:
    """(mean length, CHAIRi in percent) of groups of about as many answers, the shortest first.

    `described`: (length, kinds mentioned, of these hallucinated). Groups that mention nothing are
    left out.
    """
    rows = sorted(tuple(row) for row in described)
    points = []
    for part in np.array_split(np.array(rows, np.float64).reshape(-1, 3), bins):
        if len(part) and part[:, 1].sum() > 0:
            share = float(100 * part[:, 2].sum() / part[:, 1].sum())
            points.append((float(part[:, 0].mean()), share))
    return points


def brpo(values: Mapping[str, Any]) -> Figure | None:
    """Reflections an answer, their tokens, and accuracy during BRPO, a line a seed."""
    runs = [run for run in values["brpo"] if run["steps"]["step"]]
    if not runs:
        return None
    figure = Figure(figsize=(11, 3), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    for run in runs:
        steps, label = run["steps"], f"seed {run['seed']}"
        first.plot(steps["step"], steps["reflections"], label=label)
        second.plot(steps["step"], steps["reflection_tokens"], label=label)
        third.plot(run["validation"]["step"], run["validation"]["accuracy"], "o-", label=label)
    first.set(xlabel="step", ylabel="reflections an answer")
    second.set(xlabel="step", ylabel="tokens inside reflections")
    third.set(xlabel="step", ylabel="accuracy, %, validation questions")
    first.legend()
    return figure
