"""Packed weights stand for the numbers that they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from build_engines.native import formats, matrices, pack_codes
from build_engines.quantize import quantise
from la_trt.errors import CheckpointError
from la_trt.files.safetensors import SafetensorsFile
from tests.model.configs import random_model
from tests.native.helpers import native_bundle, round_trip
from tests.onnx.helpers import dequantise

SIZES = [(1, 1), (19, 33), (111, 64), (16, 19), (40, 257)]


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_float_round_trip(n: int, k: int) -> None:
    weight = np.random.default_rng(n).standard_normal((n, k), np.float32)
    np.testing.assert_array_equal(round_trip(weight, "float32"), weight)
    np.testing.assert_allclose(round_trip(weight, "bfloat16"), weight, rtol=2**-8)


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_those_of_the_graphs(n: int, k: int, bits: int, block_size: int) -> None:
    """The same codes as in the ONNX graphs; scales to half precision."""
    weight = np.random.default_rng(n).standard_normal((n, k), np.float32)
    got = round_trip(weight, "int4" if bits == 4 else "int8", block_size)
    graph = quantise(lambda a, b: weight[a:b], (n, k), bits, block_size)
    np.testing.assert_allclose(got, dequantise(graph).T, rtol=2**-10)


def test_weights_beyond_half_precision_are_refused() -> None:
    weight = np.full((16, 32), 1e9, np.float32)
    with pytest.raises(CheckpointError, match="quant none"):
        pack_codes(weight, 4, 32)


def test_file_holds_every_matrix(tmp_path: Path) -> None:
    model = random_model(0)
    bundle = native_bundle(model, tmp_path, decoder="int4", tower="int8")
    file = SafetensorsFile(bundle.file("native.safetensors"))
    assert file.metadata["decoder"] == "int4" and file.metadata["tower"] == "int8"
    for spec in matrices(model.config):
        groups = file.info(f"{spec.label}.weight").shape[2]
        assert groups == (8 if spec.tower else 4)
        assert file.info(f"{spec.label}.scale").dtype == np.float16
        assert (f"{spec.label}.bias" in file) == spec.bias


def test_blocks_of_128_keep_one_scale() -> None:
    rows = np.random.default_rng(0).standard_normal((16, 300)).astype(np.float32)
    for bits in (4, 8):
        codes, scale = pack_codes(rows, bits, 128)
        assert codes.shape[1] == 10 and scale.shape == (1, 3, 16)
        assert pack_codes(rows, bits, 64)[1].shape == (1, 10, 16)


def test_a_quantised_tower_is_int8() -> None:
    assert formats("int4") == ("int4", "int8")
    assert formats("none") == ("float32", "float32")
