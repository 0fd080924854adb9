"""Angles have the bits that `liblatrt` gives them, whatever NumPy makes of float32 functions here.

NumPy takes other code on AVX-512 than on AVX2, up to four last bits off in float32.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from la_trt.engines.rope import cos_sin, inverse_frequencies


@pytest.mark.parametrize("theta", [10000.0, 1000000.0, 500000.0])
@pytest.mark.parametrize("dim", [16, 40, 64, 80, 128])
def test_frequencies_are_rounded_once_from_double(theta: float, dim: int) -> None:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    expected = [np.float32(1) / np.float32(math.pow(theta, float(e))) for e in exponents]
    np.testing.assert_array_equal(inverse_frequencies(theta, dim), np.array(expected, np.float32))


def test_cosines_and_sines_are_rounded_once_from_double() -> None:
    frequencies = inverse_frequencies(10000.0, 128)
    angles = np.outer(np.arange(0, 4096, 37, dtype=np.float32), frequencies).astype(np.float32)
    for got, function in zip(cos_sin(angles), (math.cos, math.sin), strict=True):
        expected = [np.float32(function(float(a))) for a in angles.flat]
        np.testing.assert_array_equal(got.ravel(), np.array(expected, np.float32))
