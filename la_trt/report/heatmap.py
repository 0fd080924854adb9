"""Where the answer looked: attention over the image, first view beside each re-attention.

After Figure 5 of the paper. One row an image; the columns are the image, the tokens
generated before anything was re-injected, and the tokens after each re-injection.
"""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from la_trt.errors import InputError
from la_trt.events import Result
from la_trt.files.atomic import atomic_file
from la_trt.tags import REFLECTION_OPEN, TokenTable, visible_skip

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

MAX_PANELS = 9  # the first view and eight re-attentions
_SNIPPET_CHARS, _SNIPPET_LINES = 30, 3
_PANEL_INCHES = 2.7
_COLOURS = "inferno"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One column: a stretch of the answer and its mean attention.

    `mass` (M,) over the visual tokens of all images; `steps` first and last generated token;
    `selected` (n,) the tokens that were re-injected, to be marked, or None.
    """

    title: str
    snippet: str
    mass: FloatArray
    steps: tuple[int, int]
    selected: IntArray | None = None


def panels_of(result: Result, tokenizer: TokenTable) -> list[Panel]:
    """The columns of an answer that was generated with masses on.

    It is cut at each re-injection that took place, or, where there was none, at each
    `<REFLECTION>`. A stretch without a forward pass is left out, at most MAX_PANELS come.
    Raises InputError when the result holds no masses.
    """
    num_steps = len(result.step_masses)
    if num_steps == 0 or result.step_masses.shape[1] == 0:
        raise InputError(
            "heat map: the answer has no attention masses\n"
            "give an image and generate at least two tokens with masses on",
            name="E_HEATMAP",
        )
    done = {r.step: r for r in result.reinjections if not r.skipped}
    tag = tokenizer.token_id(REFLECTION_OPEN)
    cuts = sorted(done) or [i for i, token in enumerate(result.tokens) if token == tag]
    edges = [0, *(c for c in cuts if 0 < c < num_steps), num_steps]
    panels = []
    for number, (start, end) in enumerate(pairwise(edges)):
        event = done.get(start)
        if start == 0 and start not in cuts:
            title = "first view"
        else:
            what = "re-attention" if done else "reflection, nothing inserted"
            title = f"{what} {number if 0 not in cuts else number + 1}"
        if event is not None:
            title += f" ({event.num_tokens} tokens)"
        panels.append(
            Panel(
                title=title,
                snippet=_decode(tokenizer, result.tokens[start:end]),
                mass=result.step_masses[start:end].mean(axis=0),
                steps=(start, end - 1),
                selected=None if event is None or event.select == "all" else event.selected,
            )
        )
    return panels[:MAX_PANELS]


def save_heatmap(
    path: Path | str,
    images: Sequence[Image.Image],
    image_grid_thw: IntArray,
    panels: Sequence[Panel],
    *,
    merge_size: int = 2,
    heading: str = "",
) -> None:
    """Write the PNG at `path`, replacing an older one in one step.

    `images` are upright RGB, one for each row of `image_grid_thw` (N, 3). All overlays share
    one colour scale: mean attention probability of a generated token on a visual token.
    Raises MachineError when the file cannot be written.
    """
    sizes = [(int(h) // merge_size, int(w) // merge_size) for _, h, w in image_grid_thw]
    edges = np.cumsum([0, *(rows * cols for rows, cols in sizes)])
    assert len(images) == len(sizes), f"heat map: {len(images)} images, {len(sizes)} grids"
    for panel in panels:
        assert panel.mass.shape == (edges[-1],), (
            f"mass: expected [M={edges[-1]}], got {list(panel.mass.shape)}"
        )
    figure = _figure(images, len(panels))
    axes = figure.subplots(
        len(images), 1 + len(panels), squeeze=False, height_ratios=[_ratio(i) for i in images]
    )
    top = max((float(panel.mass.max()) for panel in panels), default=0.0) or 1.0
    drawn = None
    for row, image in enumerate(images):
        axes[row][0].imshow(np.asarray(image), extent=_extent(image))
        if row == 0:
            axes[row][0].set_title("image", fontsize=9)
        part = slice(int(edges[row]), int(edges[row + 1]))
        for column, panel in enumerate(panels):
            axis = axes[row][1 + column]
            drawn = _overlay(axis, image, panel.mass[part].reshape(sizes[row]), top)
            _mark(axis, image, panel.selected, part, sizes[row])
            if row == 0:
                axis.set_title(_title(panel), fontsize=9)
            if row == len(images) - 1:
                axis.set_xlabel(_wrap(_spaced(panel.snippet)), fontsize=7, parse_math=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    if drawn is not None:
        # panchor: by itself the bar draws the images to its side of their columns.
        bar = figure.colorbar(drawn, ax=list(axes.flat), fraction=0.03, pad=0.01, panchor=False)
        bar.set_label("mean attention on a visual token", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    if heading:
        figure.suptitle(_wrap(heading, 40 * (1 + len(panels))), fontsize=10, parse_math=False)
    _write(figure, Path(path))


def _figure(images: Sequence[Image.Image], num_panels: int) -> Figure:
    height = sum(_ratio(image) * _PANEL_INCHES + 0.1 for image in images) + 1.3
    figure = Figure(
        figsize=(_PANEL_INCHES * (1 + num_panels) + 1.0, height), layout="constrained", dpi=130
    )
    FigureCanvasAgg(figure)
    return figure


def _ratio(image: Image.Image) -> float:
    return min(max(image.height / image.width, 0.3), 2.5)


def _extent(image: Image.Image) -> tuple[float, float, float, float]:
    return (0.0, float(image.width), float(image.height), 0.0)


def _overlay(axis: Any, image: Image.Image, mass: FloatArray, top: float) -> Any:
    """The picture in the dark, lit up where there is attention."""
    axis.imshow(np.asarray(image), extent=_extent(image))
    drawn = axis.imshow(
        mass,
        cmap=_COLOURS,
        vmin=0.0,
        vmax=top,
        alpha=0.62,
        extent=_extent(image),
        interpolation="nearest",
    )
    axis.set_xlim(0, image.width)
    axis.set_ylim(image.height, 0)
    return drawn


def _mark(
    axis: Any,
    image: Image.Image,
    selected: IntArray | None,
    part: slice,
    size: tuple[int, int],
) -> None:
    """A white dot on each re-injected token of this image."""
    if selected is None:
        return
    own = selected[(selected >= part.start) & (selected < part.stop)] - part.start
    rows, cols = np.divmod(own, size[1])
    x, y = (cols + 0.5) * image.width / size[1], (rows + 0.5) * image.height / size[0]
    axis.plot(x, y, linestyle="", marker="o", markersize=2.2, color="white", markeredgewidth=0)


def _title(panel: Panel) -> str:
    first, last = panel.steps
    steps = f"token {first}" if first == last else f"tokens {first} to {last}"
    return f"{panel.title}\n{steps}, {100 * float(panel.mass.sum()):.1f} % on the image"


def _decode(tokenizer: TokenTable, ids: Sequence[int]) -> str:
    skip = visible_skip(tokenizer)
    data = b"".join(tokenizer.token_bytes(i) for i in ids if i not in skip)
    return data.decode("utf-8", errors="replace")


def _spaced(text: str) -> str:
    return re.sub(r"(</?[A-Z]+>)", r" \1 ", text)


def _wrap(text: str, width: int = _SNIPPET_CHARS) -> str:
    return "\n".join(
        textwrap.wrap(" ".join(text.split()), width, max_lines=_SNIPPET_LINES, placeholder=" …")
    )


def _write(figure: Figure, path: Path) -> None:
    with atomic_file(path) as file, warnings.catch_warnings():
        # A font without some character draws a box there, which does no harm.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="png")


def save_result_heatmap(
    path: Path | str,
    result: Result,
    images: Sequence[Image.Image],
    image_grid_thw: IntArray,
    tokenizer: TokenTable,
    *,
    merge_size: int = 2,
    heading: str = "",
) -> None:
    """The heat map of one answer that was generated with `masses=True`.

    Raises InputError E_HEATMAP without masses, MachineError E_WRITE.
    """
    panels = panels_of(result, tokenizer)
    save_heatmap(path, images, image_grid_thw, panels, merge_size=merge_size, heading=heading)
