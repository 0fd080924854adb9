"""A KV cache of int8 or e4m3 codes: the graph, the engine over the fake GPU, the kernel itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_engines.attention_codes import LARGEST_CODE
from build_engines.build import CheckpointWeights
from la_trt.assets import TINY_CHECKPOINT
from la_trt.bindings import kv_bindings, kv_capacity
from la_trt.engines.base import VisualKeys
from la_trt.engines.torch import TorchEngine
from la_trt.errors import BundleError
from la_trt.files.checkpoint import open_checkpoint
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import preset
from la_trt.session import Session
from tests.engines.script import play, random_script, text_step
from tests.model.configs import random_model
from tests.session.test_torch_end_to_end import PlainTokens, R, prompt_of
from tests.tensorrt.helpers import EmulatedCalls, fake_bundle, fake_engine, why_no_emulation
from tests.tensorrt.test_engine import bundle_of

KV_DTYPES = ("int8", "float8_e4m3fn")
# Half a step of a code over the row's largest magnitude: int8 has 254 steps of one size, e4m3
# three bits after the leading one.
HALF_STEP = {"int8": 0.5 / 127, "float8_e4m3fn": 2.0**-4}


def read_kv(engine: Any, cuda: Any, slot: int) -> tuple[np.ndarray, np.ndarray]:
    """Layer 0's K and V of a slot (K, length, D), decoded."""
    engine.stage_times()  # waits for the stream
    text, length = engine.config.text, engine.length(slot)
    rows = (engine.limits.max_batch, text.num_key_value_heads, kv_capacity(engine.limits.max_len))
    dtype = engine.limits.details["kv_dtype"]
    decoded = []
    for kind in ("key", "value"):
        codes = cuda.array(engine._decoder.kv(kind)[0], dtype, (*rows, text.head_dim))[slot]
        scale = cuda.array(engine._decoder.kv(f"{kind}_scale")[0], "float32", rows)[slot]
        values = codes.astype(np.float32) * scale[..., None]
        decoded.append(values[:, :length])
    return decoded[0], decoded[1]


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("seed", [2, 3])
def test_the_cache_holds_the_nearest_codes(kv_dtype: str, seed: int, tmp_path: Path) -> None:
    """Layer 0, whose K and V no earlier rounding has touched, against the torch engine's; idle
    rows and a copy among them.
    """
    model = random_model(seed)
    bundle = bundle_of(model, tmp_path / "b", max_len=100, chunk=16, kv_dtype=kv_dtype)
    engine, cuda, _ = fake_engine(bundle)
    reference = TorchEngine(model, max_batch=4, max_len=100)
    for each in (engine, reference):
        slots = [each.alloc(80) for _ in range(3)]
        for slot in slots:
            each.forward(text_step(slot, [(7 * slot + i) % 100 for i in range(40)], 0))
        step = text_step(slots[0], [4], 40)
        both = {"slots": (slots[0], slots[2]), "cu_seqlens": np.arange(3)}
        positions = np.full((3, 2), 40)
        each.forward(replace(step, **both, input_ids=np.array([4, 5]), position_ids=positions))
        each.kv_reinject(slots[0], np.array([3, 1, 39]), 5)
    for slot in range(3):
        for got, expected in zip(
            read_kv(engine, cuda, slot), (kv[0] for kv in reference.read_kv(slot)), strict=True
        ):
            assert got.shape == expected.shape
            top = np.abs(expected).max(axis=-1, keepdims=True)
            error = np.abs(got - expected)
            # Copied keys are decoded, rotated (which mixes two values) and rounded again.
            allowed = HALF_STEP[kv_dtype] * top * 1.01
            allowed[:, 41:] *= 2.5
            assert (error <= allowed + 1e-6).all()
            assert error.max() > 1e-6, "the cache is not rounded at all"


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_logits_and_mass_stay_close_to_the_float_cache(kv_dtype: str, tmp_path: Path) -> None:
    """Every kind of re-injection, several sequences: within what the codes can cause."""
    model = random_model(3)
    engine = fake_engine(bundle_of(model, tmp_path / "b", max_len=640, kv_dtype=kv_dtype))[0]
    exact = TorchEngine(model, max_batch=4, max_len=640)
    kinds = ("embed", "kv", "embed", "kv")
    scripts = [random_script(model.config, seed, kinds=kinds) for seed in range(2)]
    for got, expected in zip(play(engine, scripts), play(exact, scripts), strict=True):
        error = np.linalg.norm(np.stack(got.logits) - np.stack(expected.logits))
        relative = error / np.linalg.norm(np.stack(expected.logits))
        assert 1e-5 < relative < 4 * HALF_STEP[kv_dtype], relative
        for mass, right in zip(got.mass, expected.mass, strict=True):
            np.testing.assert_allclose(mass, right, atol=0.1)


def test_bytes_of_a_cache(tmp_path: Path) -> None:
    """A code and a share of a scale for each value; slots begin at multiples of 256 bytes."""
    config = random_model(3).config
    text = config.text
    for kv_dtype, size in (("float16", 2), ("int8", 1), ("float8_e4m3fn", 1)):
        bindings = kv_bindings(config, "past", kv_dtype)
        per_position = sum(
            np.dtype(b.dtype).itemsize * (b.shape[3] if len(b.shape) == 4 else 1) for b in bindings
        )
        scale = 4 if size == 1 else 0
        assert per_position == 2 * text.num_hidden_layers * (size * text.head_dim + scale)
    assert [kv_capacity(n) for n in (1, 64, 65)] == [64, 64, 128]


def test_a_copied_scale_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales are written in place as the codes are."""
    bundle = bundle_of(random_model(2), tmp_path / "b", kv_dtype="int8")
    inner = "tests.tensorrt.fake_trt.FakeEngine.get_aliased_input_tensor"
    monkeypatch.setattr(
        inner, lambda self, name: "" if "scale" in name else name.replace("present_", "past_")
    )
    with pytest.raises(BundleError, match=r"present_key_scale.0.*does not share the memory"):
        fake_engine(bundle)


@pytest.mark.skipif(bool(why_no_emulation()), reason=f"{why_no_emulation()} is not installed")
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_the_kernel_itself_injects_the_same(kv_dtype: str, tmp_path: Path) -> None:
    """latrt_kv_reinject on the emulated thread model, through a session of the shipped model that
    looks again twice: the reference's tokens and cache.
    """
    checkpoint = open_checkpoint(TINY_CHECKPOINT)
    weights = CheckpointWeights(checkpoint)
    options = GenerationOptions(
        policy=replace(preset("copy"), inject="kv"),
        max_tokens=8,
        ignore_eos=True,
        forced=(5, R, 7, R),
    )
    bundle = fake_bundle(
        checkpoint.config, weights, tmp_path / "b", max_len=400, max_batch=2, kv_dtype=kv_dtype
    )
    tokens, caches = [], []
    for kind in (None, EmulatedCalls):
        engine, cuda, _ = fake_engine(bundle, **({"calls": kind} if kind else {}))
        prompt = prompt_of(random_script(engine.config, 1, kinds=()))
        session = Session(engine, PlainTokens(), eos_token_ids=[])
        tokens.append(session.generate(prompt, options).tokens)
        slot = engine.alloc(60)
        engine.forward(text_step(slot, list(range(20)), 0))
        engine.kv_reinject(slot, np.array([3, 19, 0, 3]), 7)
        keys = VisualKeys(kv_index=np.array([3, 20]), source=np.array([0, 0]), num_visual=1)
        engine.forward(replace(text_step(slot, [7], 40), visual_keys=(keys,)))
        caches.append(read_kv(engine, cuda, slot))
    assert engine._calls.launched["kv_reinject"] == 3
    assert tokens[0] == tokens[1] and len(tokens[0]) == 8
    for got, expected in zip(*caches, strict=True):
        step = np.abs(expected).max() / (LARGEST_CODE[kv_dtype] if kv_dtype == "int8" else 8)
        assert np.abs(got - expected).max() <= step * 1.01
        assert (got == expected).mean() > 0.99
