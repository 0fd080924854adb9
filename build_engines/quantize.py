"""Symmetric quantisation of weight matrices in numpy: by blocks, or by output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Quant = Literal["none", "int8", "int4", "fp8"]
E4M3_MAX = 448.0
_SCALE_STARTS = (1.0, 0.95, 0.9, 0.85, 0.8, -0.95, -0.85)  # of the scale of rounding to nearest
_SCALE_FITS = 2
_ROWS_AT_ONCE_BYTES = 4 << 20  # the working set stays in cache


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """A weight (K, N) = q * scale, blocks of `block_size` along K (axis 0).

    `q` int8 of logical shape (K, N), for 4 bits packed in C order two to a byte, low nibble
    first; `scale` (ceil(K / block_size), N) float32.
    """

    q: NDArray[np.int8] | NDArray[np.uint8]
    scale: NDArray[np.float32]
    shape: tuple[int, int]
    bits: int
    block_size: int


def quantise_blocks(
    weight_NK: NDArray[np.float32], bits: int, block_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(q, scale): q (N, K) int8, scale (N, ceil(K / block_size)) float32, round to nearest.

    4 bits: the value of largest magnitude becomes -8 and the rest follow, so all sixteen codes
    are used; 8 bits: plain absmax / 127. An all-zero block has scale 0 and codes 0.
    """
    num_rows, width = weight_NK.shape
    pad = -width % block_size
    if pad:
        weight_NK = np.pad(weight_NK, ((0, 0), (0, pad)))
    blocks = weight_NK.reshape(num_rows, -1, block_size)
    high, low = blocks.max(axis=2), blocks.min(axis=2)
    if bits == 4:
        scale = np.where(high > -low, high, low) / np.float32(-8)
        limits = (-8, 7)
    else:
        scale = np.maximum(high, -low) / np.float32(127)
        limits = (-127, 127)
    codes = _codes(blocks, scale, limits)
    q = codes.astype(np.int8).reshape(num_rows, -1)
    return q[:, :width], scale.astype(np.float32)


def search_scales(
    weight_NK: NDArray[np.float32], block_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int4 (q, scale) as of `quantise_blocks`, each block's scale searched for the least error.

    From several starts, codes and scale are fitted to each other in turn: the nearest codes for
    a scale, then the scale of least squared error for the codes. The best pair wins, so no
    block is worse than rounded to nearest.
    """
    width = weight_NK.shape[1]
    q, scale = quantise_blocks(weight_NK, 4, block_size)
    pad = ((0, 0), (0, -width % block_size))
    blocks = np.pad(weight_NK, pad).reshape(len(weight_NK), -1, block_size)
    best_q = np.pad(q, pad).reshape(blocks.shape)
    best, first = scale.copy(), scale
    least = _squared_error(blocks, best_q, best)
    for factor in _SCALE_STARTS:
        scale = first * np.float32(factor)
        for _ in range(_SCALE_FITS):
            codes = _codes(blocks, scale, (-8, 7))
            power = np.einsum("nbk,nbk->nb", codes, codes)
            product = np.einsum("nbk,nbk->nb", codes, blocks)
            scale = np.divide(product, power, out=np.zeros_like(product), where=power > 0)
        error = _squared_error(blocks, codes, scale)
        better = error < least
        best_q[better], best[better], least[better] = codes[better], scale[better], error[better]
    return best_q.reshape(len(weight_NK), -1)[:, :width], best


def _codes(
    blocks: NDArray[np.float32], scale: NDArray[np.float32], limits: tuple[int, int]
) -> NDArray[np.float32]:
    """The nearest codes of blocks (N, blocks, block_size), as floats."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = blocks * inverse[:, :, None]
    np.rint(codes, out=codes)
    np.clip(codes, *limits, out=codes)
    return codes


def _squared_error(
    blocks: NDArray[np.float32], codes: NDArray[Any], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    off = blocks - codes * scale[:, :, None]
    return np.asarray(np.einsum("nbk,nbk->nb", off, off))


def quantise(
    read_rows: Callable[[int, int], NDArray[np.float32]],
    shape_NK: tuple[int, int],
    bits: int,
    block_size: int,
) -> QuantisedMatrix:
    """The transposed, quantised matrix of rows read a few at a time (`read_rows(start, stop)`)."""
    n, k = shape_NK
    num_blocks = -(-k // block_size)
    step = max(2, _ROWS_AT_ONCE_BYTES // (4 * k) // 2 * 2)
    by_pairs = bits == 4 and n % 2 == 0
    q = np.empty((k, n // 2), np.uint8) if by_pairs else np.empty((k, n), np.int8)
    scale = np.empty((num_blocks, n), np.float32)
    for start in range(0, n, step):
        stop = min(n, start + step)
        part, scale_part = quantise_blocks(read_rows(start, stop), bits, block_size)
        scale[:, start:stop] = scale_part.T
        if by_pairs:
            q[:, start // 2 : stop // 2] = _pack_pairs(part).T
        else:
            q[:, start:stop] = part.T
    if bits == 4 and not by_pairs:
        q = _pack_pairs(q.reshape(-1, 1)).reshape(-1)
    return QuantisedMatrix(q=q, scale=scale, shape=(k, n), bits=bits, block_size=block_size)


def quantise_outputs(
    weight_NK: NDArray[np.float32],
    kind: Literal["int8", "fp8"],
    cast: Callable[[NDArray[np.float32]], NDArray[Any]],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(q (K, N) int8 or float8 e4m3, scale (N,) as `cast` makes it): each output's largest weight
    becomes 127 or 448, the others the nearest code of the scale as it is stored.

    TensorRT takes positive scales alone: an all-zero output has the least that `cast` can hold.
    """
    most = np.float32(127 if kind == "int8" else E4M3_MAX)
    stored = ml_dtypes.finfo(cast(np.zeros(1, np.float32)).dtype)
    least = max(np.float32(stored.smallest_subnormal), np.finfo(np.float32).smallest_normal)
    scale = cast(np.maximum(np.abs(weight_NK).max(axis=1) / most, least))
    codes = np.clip(weight_NK / scale.astype(np.float32)[:, None], -most, most)
    q = np.rint(codes).astype(np.int8) if kind == "int8" else codes.astype(ml_dtypes.float8_e4m3fn)
    return np.ascontiguousarray(q.T), scale


def _pack_pairs(q_NK: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(ceil(N / 2), K): rows 2i in the low nibble, 2i + 1 in the high one."""
    nibbles = q_NK.view(np.uint8) & 0xF
    low, high = nibbles[0::2], nibbles[1::2]
    packed = low.copy()
    packed[: len(high)] |= high << 4
    return packed
