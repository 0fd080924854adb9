"""The very graphs that TensorRT gets, run by ONNX Runtime: their numbers, and what the parser sees.

float16 and each kind of weights against the float32 graph. bfloat16 ONNX Runtime does not compute.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from build_engines.build import CheckpointWeights
from build_engines.decoder import write_decoder
from build_engines.layers import Target
from build_engines.progress import Progress
from build_engines.quantize import quantise_outputs
from build_engines.tensorrt.bundle import TensorRTOptions, write_graph
from build_engines.tensorrt.plan import parsed_bytes
from build_engines.vision import write_vision
from la_trt.assets import TINY_CHECKPOINT
from la_trt.bindings import decoder_inputs, shape_of, vision_inputs
from la_trt.engines.vision_layout import vision_layout, window_indices
from la_trt.files.checkpoint import Checkpoint, open_checkpoint

TOKENS, CAPACITY, VISUAL = 12, 16, 5


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(TINY_CHECKPOINT)


def graph(path: Path, kind: str, checkpoint: Checkpoint, **options: Any) -> Path:
    target = path / f"{kind}.onnx"
    write_graph(
        target,
        kind,
        checkpoint.config,
        CheckpointWeights(checkpoint),
        TensorRTOptions(sms=(89,), **options),
        Progress(None, 0),
    )
    return target


def run_decoder(path: Path, checkpoint: Checkpoint, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and mass of one prompt."""
    rng, config = np.random.default_rng(0), checkpoint.config
    letters = {"B": 1, "S": TOKENS, "M": 3, "N": VISUAL, "C": CAPACITY, "R": 1}
    angles = rng.uniform(0, 6, (1, TOKENS, config.text.head_dim // 2))
    values: dict[str, Any] = {
        "input_ids": rng.integers(0, 500, (1, TOKENS)),
        "visual_row": np.array([[-1, 0, 1, 2, *[-1] * (TOKENS - 4)]]),
        "visual_embeds": rng.standard_normal((3, config.text.hidden_size)),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "seqlens_k": [TOKENS - 1],
        "query_seqlens": [TOKENS],
        "total_sequence_length": [TOKENS],
        "visual_index": np.arange(1, 1 + VISUAL)[None],
        "logits_row": [TOKENS - 1],
    }
    feeds = {
        b.name: np.asarray(values.get(b.name, np.zeros(shape_of(b, letters))), np.dtype(b.dtype))
        for b in decoder_inputs(config, dtype=dtype)
    }
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    # No MatMulNBits, which rounds activations to int8: the codes are to meet floats, as on a GPU.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    logits, mass = ort.InferenceSession(path, options).run(["logits", "visual_mass"], feeds)
    assert logits.dtype == mass.dtype == np.float32
    return logits, mass


@pytest.mark.parametrize("quant", ["none", "int8", "fp8", "int4"])
def test_float16_graphs_compute_the_same(
    quant: Any, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Against float32 arithmetic on the same codes; unquantised, on ONNX Runtime's own graph."""
    exact = tmp_path / "exact.onnx"
    write_decoder(
        exact,
        checkpoint.config,
        CheckpointWeights(checkpoint),
        quant=quant,
        block_size=128,
        progress=Progress(None, 0),
        target=Target(portable=quant != "none"),
    )
    expected = run_decoder(exact, checkpoint, "float32")
    got = run_decoder(graph(tmp_path, "decoder", checkpoint, quant=quant), checkpoint, "float16")
    error = np.linalg.norm(got[0] - expected[0]) / np.linalg.norm(expected[0])
    assert 1e-6 < error < 0.02, error
    assert 0 < got[1].sum() < 1
    np.testing.assert_allclose(got[1], expected[1], atol=0.004)


def test_the_vision_graph_computes_the_same_in_float16(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """One image whose windows are not all full, against the float32 graph of ONNX Runtime."""
    config, weights, count = checkpoint.config, CheckpointWeights(checkpoint), Progress(None, 0)
    v = config.vision
    half = graph(tmp_path, "vision", checkpoint)
    exact = tmp_path / "exact.onnx"
    write_vision(exact, config, weights, quant="none", block_size=32, progress=count)
    layout = vision_layout(np.array([1, 10, 14]), v)
    window_patch, patch_slot = window_indices(layout.window_sizes)
    assert len(set(layout.window_sizes.tolist())) > 1
    values = {
        "pixel_values": np.random.default_rng(1).standard_normal((1, 140, v.patch_dim)),
        "cos": layout.cos[None],
        "sin": layout.sin[None],
        "window_patch": window_patch,
        "window_length": layout.window_sizes,
        "patch_slot": patch_slot,
    }
    results = []
    for path, dtype in ((exact, "float32"), (half, "float16")):
        feeds = {
            b.name: np.asarray(values[b.name], np.dtype(b.dtype))
            for b in vision_inputs(config, dtype=dtype)
        }
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        results.append(ort.InferenceSession(path, options).run(None, feeds)[0].astype(np.float32))
    error = np.linalg.norm(results[1] - results[0]) / np.linalg.norm(results[0])
    assert 1e-6 < error < 0.02, error


@pytest.mark.parametrize("kind", ["vision", "decoder"])
@pytest.mark.parametrize("quant", ["none", "int4", "fp8"])
def test_only_operators_that_both_runtimes_know(
    kind: str, quant: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """What the parser gets: the standard's operators, one plugin a layer, no body for it."""
    path = graph(tmp_path, kind, checkpoint, quant=quant, dtype="bf16")
    model = onnx.load_from_string(parsed_bytes(path))
    domains = Counter(n.domain for n in model.graph.node)
    domains.update(n.domain for f in model.functions for n in f.node)
    assert "com.microsoft" not in domains
    names = Counter(n.op_type for n in model.graph.node)
    layers = checkpoint.config.text.num_hidden_layers
    assert names["VisualAttention"] == (layers if kind == "decoder" else 0)
    assert {f.name for f in model.functions} == (
        {"WindowAttention", "ImageAttention"} if kind == "vision" else set()
    )
    fused = names["DequantizeLinear"]
    assert fused == (5 * layers + 1 if kind == "decoder" and quant != "none" else 0)
    types = {t.data_type for t in model.graph.initializer if t.dims and len(t.dims) == 2}
    assert onnx.TensorProto.FLOAT not in types
    with_body = onnx.load(path, load_external_data=False)
    assert ("VisualAttention" in {f.name for f in with_body.functions}) == (kind == "decoder")


def test_fp8_codes_are_the_nearest_ones() -> None:
    weight = np.random.default_rng(0).standard_normal((7, 40)).astype(np.float32)
    weight[3] = 0
    q_KN, scale = quantise_outputs(weight, "fp8", Target().cast)
    assert q_KN.shape == (40, 7) and q_KN.dtype == ml_dtypes.float8_e4m3fn
    assert 0 < scale[3] < 1e-30 and (q_KN[:, 3].astype(np.float32) == 0).all()
    assert (np.abs(q_KN.astype(np.float32)).max(axis=0)[[0, 1, 2, 4, 5, 6]] == 448).all()
    error = np.abs(q_KN.astype(np.float32).T * scale[:, None] - weight)
    step = np.maximum(np.abs(weight) / 16, scale[:, None] * 2.0**-10)  # half a step of 3 bits
    assert (error <= step * 1.001).all()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_scales_are_positive_as_they_are_stored(kind: Any, dtype: str) -> None:
    """TensorRT refuses others; rows that are zero, or nearly, would have a scale of 0 in fp16."""
    weight = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    weight *= np.array([1, 0, 1e-9, 1e-6, 1e-4, 1e-2], np.float32)[:, None]
    q_KN, scale = quantise_outputs(weight, kind, Target(dtype=dtype).cast)
    assert scale.dtype == np.dtype(dtype) and (scale.astype(np.float32) > 0).all()
    got = (q_KN.astype(np.float32) * scale.astype(np.float32)).T
    # Half a step of what is stored, or a sixteenth of the number in fp8.
    step = scale.astype(np.float32)[:, None]
    assert (np.abs(got - weight) <= 0.51 * step + np.abs(weight) * (kind == "fp8") / 15).all()


def test_int8_codes_are_the_nearest_ones() -> None:
    weight = np.random.default_rng(0).standard_normal((5, 33)).astype(np.float32)
    weight[2] = 0
    q_KN, scale = quantise_outputs(weight, "int8", Target().cast)
    assert q_KN.dtype == np.int8
    assert np.abs(q_KN.astype(int)).max(axis=0).tolist() == [127, 127, 0, 127, 127]
    error = np.abs(q_KN.astype(np.float32).T * scale[:, None] - weight)
    assert (error <= 0.5001 * scale[:, None]).all()
