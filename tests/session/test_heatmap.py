"""The heat map: how an answer is cut into panels, and what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from la_trt.errors import InputError, MachineError
from la_trt.events import Result
from la_trt.reattention.policy import preset
from la_trt.report import heatmap
from la_trt.report.heatmap import (
    MAX_PANELS,
    Panel,
    panels_of,
    save_heatmap,
    save_result_heatmap,
)
from la_trt.session import GenerationOptions, Session
from tests.session.mock_engine import ByteTokens, Entry, MockEngine, answer, ids_of, make_prompt

GRID = np.array([[1, 4, 6]], np.int64)


def result_of(text: str, policy: str, **kwargs: object) -> Result:
    prompt = make_prompt(grids=[(2, 3)])

    def masses(entries: list[Entry], num_visual: int) -> np.ndarray:
        return np.full(num_visual, len(entries) / 1000, np.float32)

    engine = MockEngine(answer(prompt, ids_of(text)), masses=masses)
    options = GenerationOptions(policy=preset(policy), masses=True, **kwargs)
    return Session(engine, ByteTokens()).generate(prompt, options)


TEXT = "abc<REFLECTION>d</REFLECTION>e<REFLECTION>f</REFLECTION>$g_1$"


def test_an_answer_is_cut_at_each_injection() -> None:
    result = result_of(TEXT, "route")
    panels = panels_of(result, ByteTokens())
    assert [p.steps for p in panels] == [(0, 2), (3, 6), (7, 14)]
    assert [p.title for p in panels] == [
        "first view",
        "re-attention 1 (3 tokens)",
        "re-attention 2 (3 tokens)",
    ]
    assert panels[1].snippet == "<REFLECTION>d</REFLECTION>e"
    assert panels[1].selected is not None and panels[0].selected is None
    assert panels[1].mass == pytest.approx(result.step_masses[3:7].mean(axis=0))


def test_without_injections_it_is_cut_at_the_reflections() -> None:
    panels = panels_of(result_of(TEXT, "text"), ByteTokens())
    assert [p.steps for p in panels] == [(0, 2), (3, 6), (7, 14)]
    assert panels[1].title == "reflection, nothing inserted 1"
    assert len(panels_of(result_of("abc", "copy"), ByteTokens())) == 1


def test_a_reflection_that_comes_first_leaves_no_first_view() -> None:
    panels = panels_of(result_of("<REFLECTION>a<REFLECTION>", "copy"), ByteTokens())
    assert [p.title for p in panels] == ["re-attention 1 (6 tokens)", "re-attention 2 (6 tokens)"]
    assert [p.steps for p in panels] == [(0, 1), (2, 2)]


def test_endless_reflections_give_a_bounded_number_of_panels() -> None:
    result = result_of("<REFLECTION>a" * 30, "text", max_tokens=60)
    assert len(panels_of(result, ByteTokens())) == MAX_PANELS


def test_no_masses_no_heat_map(tmp_path: Path) -> None:
    result = replace(result_of(TEXT, "copy"), step_masses=np.zeros((0, 0), np.float32))
    with pytest.raises(InputError, match="no attention masses"):
        save_result_heatmap(tmp_path / "x.png", result, [], GRID[:0], ByteTokens())
    assert list(tmp_path.iterdir()) == []


def test_the_brightest_cell_is_where_the_mass_is(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    path.write_bytes(b"an older file")
    image = Image.new("RGB", (300, 200), (0, 0, 0))
    mass = np.zeros(6, np.float32)
    mass[5] = 0.5
    panel = Panel(title="first view", snippet="漢 🙂 $x", mass=mass, steps=(0, 0))
    save_heatmap(path, [image], GRID, [panel], heading="a $question_")
    drawn = np.asarray(Image.open(path).convert("RGB"), dtype=np.int64)
    # The overlay of a black picture: the lower right cell alone is bright (pale yellow).
    bright = (drawn[..., 0] > 130) & (drawn[..., 2] < 120) & (drawn[..., 1] > 130)
    left_half = bright[:, : int(drawn.shape[1] * 0.45)]
    assert bright.sum() > 2000
    assert left_half.sum() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]


def test_several_images_of_ugly_sizes_draw(tmp_path: Path) -> None:
    images = [Image.new("RGB", size, (250, 240, 200)) for size in ((19, 111), (500, 28))]
    grids = np.array([[1, 8, 2], [1, 2, 36]], np.int64)
    panels = [
        Panel(title="first view", snippet="", mass=np.zeros(22, np.float32), steps=(0, 4)),
        Panel(
            title="re-attention 1",
            snippet="a" * 500,
            mass=np.ones(22, np.float32) / 22,
            steps=(5, 5),
            selected=np.array([0, 3, 4, 21]),
        ),
    ]
    path = tmp_path / "several.png"
    save_heatmap(path, images, grids, panels)
    with Image.open(path) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width > drawn.height > 100


def test_a_narrow_image_stands_in_the_middle_of_its_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(heatmap, "_write", lambda figure, path: drawn.append(figure))
    images = [Image.new("RGB", (600, 150)), Image.new("RGB", (40, 400))]
    grids = np.array([[1, 4, 16], [1, 20, 4]])
    panel = Panel(title="first view", snippet="", mass=np.ones(36, np.float32), steps=(0, 1))
    save_heatmap(tmp_path / "map.png", images, grids, [panel, panel])
    (figure,) = drawn
    figure.canvas.draw()
    wide, narrow = figure.axes[:3], figure.axes[3:6]
    for above, below in zip(wide, narrow, strict=True):
        middles = [axis.get_window_extent() for axis in (above, below)]
        assert abs(middles[0].x0 + middles[0].x1 - middles[1].x0 - middles[1].x1) < 4


def test_a_place_that_cannot_be_written_is_an_environment_error(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20))
    panel = Panel(title="t", snippet="s", mass=np.ones(6, np.float32), steps=(0, 0))
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"map\.png"):
        save_heatmap(tmp_path / "file" / "map.png", [image], GRID, [panel])
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(MachineError, match=r"dir\.png"):
        save_heatmap(tmp_path / "dir.png", [image], GRID, [panel])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir.png", "file"]
