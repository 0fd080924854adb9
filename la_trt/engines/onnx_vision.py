"""Runs the vision graph: images of one size together, patches put in window order and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from la_trt.config import VisionConfig
from la_trt.engines.base import FloatArray, IntArray
from la_trt.engines.vision_layout import VisionLayout, vision_layout, window_indices

_PATCHES_AT_ONCE = 4096


class VisionRunner:
    """Calls a session of vision.onnx. `images_at_once`: of one size, by default as many as have
    4096 patches together.
    """

    def __init__(
        self, session: Any, config: VisionConfig, *, images_at_once: int | None = None
    ) -> None:
        self._session = session
        self._config = config
        self._images_at_once = images_at_once

    def __call__(self, pixel_values: FloatArray, grid_thw: IntArray) -> FloatArray:
        """Visual embeddings (M, E) of images packed in order; see `Engine.vision`."""
        v = self._config
        grids = np.asarray(grid_thw, np.int64).reshape(-1, 3)
        patches = grids.prod(axis=1)
        assert pixel_values.shape == (patches.sum(), v.patch_dim), (
            f"pixel_values: expected [P={patches.sum()}, {v.patch_dim}], "
            f"got {list(pixel_values.shape)}"
        )
        starts = np.cumsum(patches) - patches
        unit = v.spatial_merge_size**2
        out = np.empty((int(patches.sum()) // unit, v.out_hidden_size), np.float32)
        for grid in np.unique(grids, axis=0):
            layout = vision_layout(grid, v)
            same = starts[(grids == grid).all(axis=1)]
            at_once = self._images_at_once or max(1, _PATCHES_AT_ONCE // int(grid.prod()))
            for first in range(0, len(same), at_once):
                images = same[first : first + at_once]
                embeds = self._run(pixel_values, images, layout)
                for start, embed in zip(images, embeds, strict=True):
                    out[start // unit + layout.token_order] = embed
        return out

    def _run(self, pixel_values: FloatArray, starts: IntArray, layout: VisionLayout) -> FloatArray:
        """(G, M, E) in window order, of the images that begin at patches `starts`."""
        count = len(starts)
        window_patch, patch_slot = window_indices(np.tile(layout.window_sizes, count))
        tables = (np.tile(table, (count, 1, 1)) for table in (layout.cos, layout.sin))
        cos, sin = tables
        feeds = {
            "pixel_values": pixel_values[starts[:, None] + layout.patch_order],
            "cos": cos,
            "sin": sin,
            "window_patch": window_patch,
            "window_length": np.tile(layout.window_sizes, count).astype(np.int32),
            "patch_slot": patch_slot,
        }
        (embeds,) = self._session.run(["visual_embeds"], feeds)
        return np.asarray(embeds, np.float32).reshape(count, len(layout.token_order), -1)
