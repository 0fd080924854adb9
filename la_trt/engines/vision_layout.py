"""Window order and index tensors of the vision tower, computed on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from la_trt.config import VisionConfig
from la_trt.engines.base import FloatArray, IntArray
from la_trt.engines.rope import cos_sin, inverse_frequencies

THETA = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLayout:
    """One image of `grid_thw`: how its P patches and P / merge**2 tokens are reordered.

    `token_order` (M,): the merged token (row-major) at each place of the window order;
    `patch_order` (P,) the same for patches, which come grouped by merged token. `cos`, `sin`
    (P, D / 2) in window order. `window_sizes` (W,): patches of each window.
    """

    token_order: IntArray
    patch_order: IntArray
    cos: FloatArray
    sin: FloatArray
    window_sizes: IntArray


def vision_layout(grid_thw: IntArray, config: VisionConfig) -> VisionLayout:
    """The layout of one image grid (3,); t must be 1."""
    t, h, w = (int(n) for n in grid_thw)
    merge = config.spatial_merge_size
    assert t == 1 and h % merge == 0 and w % merge == 0, f"grid_thw: got {[t, h, w]}"
    rows, cols = h // merge, w // merge
    side = config.window_size // merge // config.patch_size
    row, col = (a.reshape(-1) for a in np.divmod(np.arange(rows * cols), cols))
    window = (row // side) * -(-cols // side) + col // side
    token_order = np.argsort(window, kind="stable")
    unit = merge * merge
    patch_order = (token_order[:, None] * unit + np.arange(unit)).reshape(-1)
    dy, dx = np.divmod(np.arange(unit), merge)
    y = (row[:, None] * merge + dy).reshape(-1)[patch_order]
    x = (col[:, None] * merge + dx).reshape(-1)[patch_order]
    inverse = inverse_frequencies(THETA, config.head_dim // 2)
    places = (place.astype(np.float32)[:, None] for place in (y, x))
    angles = np.concatenate([place * inverse for place in places], axis=1)
    cos, sin = cos_sin(angles)
    return VisionLayout(
        token_order=token_order,
        patch_order=patch_order,
        cos=cos,
        sin=sin,
        window_sizes=np.bincount(window) * unit,
    )


def window_indices(sizes: IntArray) -> tuple[IntArray, IntArray]:
    """(`window_patch` (W, Q), `patch_slot` (P,)) of consecutive windows of `sizes` patches."""
    longest = int(sizes.max())
    starts = np.cumsum(sizes) - sizes
    offset = np.arange(longest)
    valid = offset < sizes[:, None]
    patch = np.where(valid, starts[:, None] + offset, 0)
    return patch.astype(np.int64), np.flatnonzero(valid).astype(np.int64)
