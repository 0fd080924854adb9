"""Rotary angles computed on the host: M-RoPE for tokens, plain rotation for re-injected keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from la_trt.config import TextConfig
from la_trt.engines.base import FloatArray, IntArray


def inverse_frequencies(theta: float, dim: int) -> FloatArray:
    """(dim / 2,) float32: theta ** (-2 i / dim), its power rounded once from double."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    power = np.float64(np.float32(theta)) ** exponents.astype(np.float64)
    return np.asarray(np.float32(1) / power.astype(np.float32), np.float32)


def mrope_tables(position_ids: IntArray, text: TextConfig) -> tuple[FloatArray, FloatArray]:
    """cos and sin (T, D / 2) of positions (3, T).

    Pair i takes the temporal, height or width position as its M-RoPE section says. Angles are
    float32, as in the published model.
    """
    section = np.repeat(np.arange(3), text.mrope_section)
    inverse = inverse_frequencies(text.rope_theta, text.head_dim)
    return cos_sin(position_ids[section].T.astype(np.float32) * inverse)


def shift_tables(delta: int, theta: float, dim: int) -> tuple[FloatArray, FloatArray]:
    """cos and sin (dim / 2,) that move keys by `delta` positions in t, h and w alike.

    Rotary pair (i, i + dim / 2) turns by delta * theta_i: one rotation whatever the M-RoPE
    sections, since all three positions shift by the same (docs/architecture.md, Looking again).
    """
    return cos_sin(delta * inverse_frequencies(theta, dim).astype(np.float64))


def cos_sin(angles: FloatArray | NDArray[np.float64]) -> tuple[FloatArray, FloatArray]:
    """cos and sin of angles, rounded once from double: the same bits as in `liblatrt`.

    NumPy's float32 functions are off by a last bit now and then, which turns codes of quantised
    activations, and so an answer in 25 of 160 tokens.
    """
    exact = angles.astype(np.float64)
    return np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32)


def rotate_keys(key_KND: FloatArray, delta: int, theta: float) -> FloatArray:
    """Keys moved by `delta` positions (`shift_tables`)."""
    dim = key_KND.shape[-1]
    cos, sin = shift_tables(delta, theta, dim)
    first, second = key_KND[..., : dim // 2], key_KND[..., dim // 2 :]
    out: NDArray[np.float32] = np.empty_like(key_KND)
    out[..., : dim // 2] = first * cos - second * sin
    out[..., dim // 2 :] = second * cos + first * sin
    return out
