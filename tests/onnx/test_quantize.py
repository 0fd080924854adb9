"""Block quantisation: error bounds, packing, and what ONNX Runtime makes of the bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from build_engines.graph import GraphWriter, WeightFile
from build_engines.layers import LayerWriter
from build_engines.quantize import quantise, quantise_blocks
from la_trt.bindings import Binding
from la_trt.engines.onnx_session import CPU
from tests.onnx.helpers import dequantise


def random_weight(n: int, k: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, k), np.float32)


SHAPES = [(1, 1), (2, 16), (19, 111), (111, 19), (64, 96), (3, 257)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_error_is_at_most_one_step(shape: tuple[int, int], block_size: int, bits: int) -> None:
    """Half a step by rounding; for 4 bits up to one where the far end is clipped to 7."""
    weight = random_weight(*shape)
    matrix = quantise(lambda a, b: weight[a:b], shape, bits, block_size)
    got = dequantise(matrix).T
    step = np.repeat(np.abs(matrix.scale), block_size, axis=0)[: shape[1]].T
    assert matrix.scale.shape == (-(-shape[1] // block_size), shape[0])
    assert (np.abs(got - weight) <= step * (1.0001 if bits == 4 else 0.5001)).all()
    relative = np.linalg.norm(got - weight) / np.linalg.norm(weight)
    assert relative < (0.15 if bits == 4 else 0.01)


def test_extremes_and_zero_blocks() -> None:
    weight = np.zeros((3, 32), np.float32)
    weight[0, 3], weight[0, 4] = -4.0, 3.0
    weight[1, 0] = 1e-30
    q, scale = quantise_blocks(weight, 4, 32)
    assert q[0, 3] == -8
    assert scale[0, 0] == 0.5
    assert q[0, 4] == 6
    assert (q[2] == 0).all()
    assert scale[2, 0] == 0
    assert np.isfinite(scale).all()


def test_rows_may_come_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(37, 65)
    whole = quantise(lambda a, b: weight[a:b], weight.shape, 4, 32)
    monkeypatch.setattr("build_engines.quantize._ROWS_AT_ONCE_BYTES", 1)
    pieces = quantise(lambda a, b: weight[a:b], weight.shape, 4, 32)
    np.testing.assert_array_equal(whole.q, pieces.q)
    np.testing.assert_array_equal(whole.scale, pieces.scale)


class _OneWeight:
    def __init__(self, weight: NDArray[np.float32]) -> None:
        self._weight = weight

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weight.shape

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        return self._weight[start:stop].copy()

    def release(self, name: str) -> None:
        pass


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_onnxruntime_reads_the_same_numbers(
    shape: tuple[int, int], quant: str, tmp_path: Path
) -> None:
    """x @ W with float32 arithmetic against our own dequantised matrix."""
    n, k = shape
    weight = random_weight(n, k)
    graph = GraphWriter(
        "one", [Binding("x", "float32", ("T", k))], WeightFile(tmp_path / "one.onnx.data")
    )
    layers = LayerWriter(graph=graph, source=_OneWeight(weight), quant=quant, block_size=16)
    matrix = layers.quantised("w")
    y = layers.linear(graph.inputs["x"], "w")
    graph.save(tmp_path / "one.onnx", [(Binding("y", "float32", ("T", n)), y)])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(tmp_path / "one.onnx", options, providers=[CPU])
    x = random_weight(19, k, seed=1)
    (got,) = session.run(None, {"x": x})
    np.testing.assert_allclose(got, x @ dequantise(matrix), atol=2e-4 * np.sqrt(k))
