"""The graph as ONNX Runtime runs it: what was fused, and that the cache stays where it is."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from la_trt.bindings import decoder_inputs, decoder_outputs, vision_inputs, vision_outputs
from la_trt.engines.base import VisualKeys
from la_trt.engines.onnx import OnnxEngine
from la_trt.engines.onnx_session import CPU, open_session
from la_trt.engines.torch import TorchEngine
from la_trt.errors import UsageError
from la_trt.files.bundle import Bundle
from la_trt.model import QwenVL
from tests.engines.script import play, random_script, text_step
from tests.model.configs import random_config, random_model
from tests.onnx.helpers import RoundedWeights, graph_bundle, make_onnx_engine

# Operators that copy whole tensors to other memory or other layouts.
CACHE_COPIES = {"Concat", "Identity", "ScatterND", "ScatterElements", "TensorScatter", "Memcpy"}


def optimised(bundle: Bundle, graph: str, path: Path) -> onnx.GraphProto:
    """The graph after ONNX Runtime's optimisers."""
    config = bundle.config
    pairs = {
        "decoder.onnx": (decoder_inputs(config), decoder_outputs(config)),
        "vision.onnx": (vision_inputs(config), vision_outputs(config)),
    }
    target = path / f"optimised_{graph}"
    open_session(
        bundle.file(graph), *pairs[graph], threads=1, providers=(CPU,), optimized_path=target
    )
    return onnx.load(target, load_external_data=False).graph


def model_of_layers(num: int) -> QwenVL:
    config = random_config(0)
    model = QwenVL(replace(config, text=replace(config.text, num_hidden_layers=num)))
    model.initialize(0, std=0.15)
    return model.eval().requires_grad_(False)


def attributes(graph: onnx.GraphProto, op_type: str, name: str) -> list[Any]:
    found = (n for n in graph.node if n.op_type == op_type)
    return [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}[name] for n in found]


@pytest.mark.parametrize("seed", [0, 1])  # untied and tied
@pytest.mark.parametrize(("quant", "bits"), [("int4", 4), ("int8", 8)])
def test_every_linear_layer_is_fused(seed: int, quant: str, bits: int, tmp_path: Path) -> None:
    model = random_model(seed)
    bundle = graph_bundle(model, tmp_path / "b", quant=quant, block_size=16)
    graph = optimised(bundle, "decoder.onnx", tmp_path)
    count = Counter(n.op_type for n in graph.node)
    layers = model.config.text.num_hidden_layers
    assert count["MatMulNBits"] == 5 * layers + 1  # qkv, o, gate, up, down; head
    assert count["MatMul"] == count["Gemm"] == 0
    assert count["SkipSimplifiedLayerNormalization"] == 2 * layers - 1
    assert count["RMSNormalization"] == 2
    assert count["Add"] == 1  # but for the last, residuals are added where they are normalised
    assert count["DequantizeLinear"] == (0 if quant == "int4" else 1)  # rows of the embedding
    assert count["GroupQueryAttention"] == layers
    assert attributes(graph, "MatMulNBits", "bits") == [bits] * count["MatMulNBits"]
    assert attributes(graph, "MatMulNBits", "accuracy_level") == [4] * count["MatMulNBits"]
    vision = optimised(bundle, "vision.onnx", tmp_path)
    count = Counter(n.op_type for n in vision.node)
    depth = model.config.vision.depth
    assert count["MatMulNBits"] == 5 * depth + 3  # qkv, proj, gate, up, down; patches, merger
    assert attributes(vision, "MatMulNBits", "bits") == [8] * count["MatMulNBits"]
    assert count["MultiHeadAttention"] == depth


@pytest.mark.parametrize("quant", ["none", "int4"])
def test_no_operator_copies_the_cache(quant: str, tmp_path: Path) -> None:
    model = random_model(2)
    graph = optimised(graph_bundle(model, tmp_path / "b", quant=quant), "decoder.onnx", tmp_path)
    assert not CACHE_COPIES & {n.op_type for n in graph.node}
    cache = {i.name for i in graph.input if i.name.startswith("past_")}
    users = [n.op_type for n in graph.node for i in n.input if i in cache]
    assert users == ["GroupQueryAttention"] * 2 * model.config.text.num_hidden_layers


def test_functions_carry_the_attention(tmp_path: Path) -> None:
    """As built, before inlining: one call for each layer, its body in the same file; heads and
    keys of the mass are picked once, not in every layer."""
    model = random_model(0)
    bundle = graph_bundle(model, tmp_path)
    built = onnx.load(bundle.file("decoder.onnx"), load_external_data=False)
    calls = [n for n in built.graph.node if n.op_type == "RowAttention"]
    assert len(calls) == model.config.text.num_hidden_layers
    assert {n.domain for n in calls} == {"lookagain"}
    (function,) = (f for f in built.functions if f.name == "RowAttention")
    body = [n.op_type for n in function.node if n.op_type != "Constant"]
    assert body == ["GroupQueryAttention", "Gather"]
    end = [n.op_type for n in built.graph.node if n.name.startswith("visual_mass")]
    assert end == ["Sum", "ReduceSum", "GatherElements", "Mul"]


def test_the_mass_of_many_layers_is_summed_in_steps(tmp_path: Path) -> None:
    """20 layers: sums of 9, 9 and 4 rows, and the mean over all of them, as torch has it."""
    model = model_of_layers(20)
    engine = make_onnx_engine(model, tmp_path)
    built = onnx.load(tmp_path / "decoder.onnx", load_external_data=False)
    assert [len(n.input) for n in built.graph.node if n.op_type == "Sum"] == [9, 9, 4]
    keys = VisualKeys(kv_index=np.arange(1, 6), source=np.arange(5), num_visual=5)
    masses = []
    for e in (engine, TorchEngine(model, max_batch=1, max_len=64)):
        e.alloc(64)
        step = replace(text_step(0, list(range(12)), 0), visual_keys=(keys,))
        masses.append(e.forward(step).visual_mass[0])
    np.testing.assert_allclose(masses[0], masses[1], atol=1e-5)


def test_each_layer_gives_its_attention_back_before_the_next(tmp_path: Path) -> None:
    """As ONNX Runtime runs it: the row is picked, then the probabilities are free."""
    bundle = graph_bundle(model_of_layers(4), tmp_path)
    engine = OnnxEngine(bundle, threads=1, max_batch=1, max_len=64, profile=tmp_path / "profile")
    engine.alloc(64)
    engine.forward(text_step(0, list(range(12)), 0))
    events = json.loads(engine.end_profile().read_text())
    kernels = [e for e in events if e["name"].endswith("_kernel_time")]
    attention = [e["args"]["op_name"] for e in kernels if "RowAttention" in e["name"]]
    assert attention == ["GroupQueryAttention", "Gather"] * 4
    plain = make_onnx_engine(random_model(2), tmp_path / "plain")
    with pytest.raises(UsageError, match="profile"):
        plain.end_profile()


@pytest.mark.parametrize("quant", ["none", "int4"])
def test_plain_decoder_is_the_same_without_mass(quant: str, tmp_path: Path) -> None:
    """The same logits but for rounding, over the same data file; the mass is refused."""
    model = random_model(3)
    engines = [make_onnx_engine(model, tmp_path, quant=quant, mass=mass) for mass in (True, False)]
    steps = [text_step(0, list(range(40)), 0), text_step(0, [7], 40), text_step(0, [9, 3], 41)]
    for engine in engines:
        engine.alloc(64)
    for step in steps:
        full, plain = (engine.forward(step) for engine in engines)
        error = np.linalg.norm(full.logits - plain.logits) / np.linalg.norm(full.logits)
        assert error < (1e-5 if quant == "none" else 0.02), error
    keys = VisualKeys(kv_index=np.arange(3), source=np.arange(3), num_visual=3)
    with pytest.raises(UsageError, match="mass"):
        engines[1].forward(replace(text_step(0, [1], 43), visual_keys=(keys,)))
    plain_graph = onnx.load(tmp_path / "decoder_plain.onnx", load_external_data=False)
    used = {e.value for t in plain_graph.graph.initializer for e in t.external_data}
    assert "decoder.onnx.data" in used
    text = plain_graph.SerializeToString()
    assert b"qk_output" not in text
    assert b"visual_mass" not in text


def test_cache_is_written_in_place(tmp_path: Path) -> None:
    """Outputs have the buffers' addresses, and a step writes its own rows and no others."""
    model = random_model(3)
    engine = make_onnx_engine(model, tmp_path, max_len=64)
    runner = engine._decoder
    slots = [engine.alloc(64) for _ in range(3)]
    for buffer in runner.kv:
        buffer[:] = 7.0
    for slot in slots:
        engine.forward(text_step(slot, list(range(19)), 0))
    before = [buffer.copy() for buffer in runner.kv]
    engine.forward(text_step(slots[1], [5], 19))
    for old, new in zip(before, runner.kv, strict=True):
        changed = np.unique(np.argwhere(old != new)[:, [0, 2]], axis=0)
        assert changed.tolist() == [[slots[1], 19]]
        assert (new[:, :, 20:] == 7.0).all()
    binding = next(iter(runner._bound.values()))
    pointers = [value.data_ptr() for value in binding.io.get_outputs()[2:]]
    first = slots[1]
    assert pointers == [b[first].ctypes.data for b in runner.kv]


def test_idle_rows_between_batched_slots_keep_their_cache(tmp_path: Path) -> None:
    model = random_model(4)
    engine = make_onnx_engine(model, tmp_path, max_len=24)
    slots = [engine.alloc(24) for _ in range(3)]
    engine.forward(text_step(slots[1], list(range(24)), 0))  # full to the brim
    for slot in (slots[0], slots[2]):
        engine.forward(text_step(slot, [1, 2, 3], 0))
    before = [buffer[slots[1]].copy() for buffer in engine._decoder.kv]
    step = text_step(slots[0], [9, 8], 3)
    both = replace(step, slots=(slots[2], slots[0]), cu_seqlens=np.array([0, 1, 2]))
    got = engine.forward(replace(both, position_ids=np.full((3, 2), 3))).logits
    for old, buffer in zip(before, engine._decoder.kv, strict=True):
        np.testing.assert_array_equal(buffer[slots[1]], old)
    assert engine.length(slots[1]) == 24
    engine.truncate(slots[0], 3)
    alone = engine.forward(text_step(slots[0], [8], 3)).logits
    np.testing.assert_allclose(got[1], alone[0], atol=1e-5)


def test_long_prompts_run_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks bound the attention probabilities, and give the same logits and mass."""
    model = random_model(5)
    heads = model.config.text.num_attention_heads
    engine = make_onnx_engine(model, tmp_path)
    runs: list[int] = []
    inner = engine._decoder.run

    def spy(rows: Any) -> Any:
        runs.append(rows.input_ids.shape[1])
        return inner(rows)

    monkeypatch.setattr(engine._decoder, "run", spy)
    slot = engine.alloc(1200)
    keys = VisualKeys(kv_index=np.arange(30, 60), source=np.arange(30) % 7, num_visual=7)
    step = replace(text_step(slot, (np.arange(1111) * 7 % 100).tolist(), 0), visual_keys=(keys,))
    whole = engine.forward(step)
    assert max(runs) <= 256
    engine.truncate(slot, 0)
    runs.clear()
    monkeypatch.setattr("la_trt.engines.onnx._PROBABILITY_BYTES", 4 * heads * 1111 * 100)
    pieces = engine.forward(step)
    assert runs == [100] * 11 + [11]
    np.testing.assert_allclose(pieces.logits, whole.logits, atol=1e-4)
    np.testing.assert_allclose(pieces.visual_mass[0], whole.visual_mass[0], atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 4])
@pytest.mark.parametrize(("quant", "bits"), [("int8", 8), ("int4", 4)])
def test_quantised_engine_is_close(seed: int, quant: str, bits: int, tmp_path: Path) -> None:
    """Against a float32 engine with the rounded weights: what is left is int8 arithmetic."""
    model = random_model(seed)
    script = random_script(model.config, seed, kinds=("embed", "kv"))
    rounded = RoundedWeights(model, bits, 32)
    (exact,) = play(make_onnx_engine(model, tmp_path / "f", weights=rounded), [script])
    (rough,) = play(make_onnx_engine(model, tmp_path / "q", quant=quant), [script])
    for got, expected in zip(rough.logits, exact.logits, strict=True):
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert 1e-5 < error < 0.1, error
    np.testing.assert_allclose(rough.mass[-1], exact.mass[-1], atol=0.02)


def test_tied_table_is_stored_once(tmp_path: Path) -> None:
    model: QwenVL = random_model(1)
    assert model.config.text.tie_word_embeddings
    for quant in ("none", "int8", "int4"):
        bundle = graph_bundle(model, tmp_path / quant, quant=quant)
        built = onnx.load(bundle.file("decoder.onnx"), load_external_data=False)
        places = [
            tuple(e.value for e in t.external_data if e.key in ("offset", "length"))
            for t in built.graph.initializer
            if t.name.startswith(("lm_head", "model.embed_tokens")) and t.external_data
        ]
        assert len(set(places)) == (1 if quant == "none" else 2)
        assert isinstance(OnnxEngine(bundle, threads=1, max_len=8), OnnxEngine)
