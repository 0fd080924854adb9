"""The native engine: conformance in float, and what quantised weights may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_engines.build import build
from build_engines.native import Format
from la_trt import LookAgain
from la_trt.assets import TINY_CHECKPOINT
from la_trt.engines.base import Engine
from la_trt.engines.native import NativeEngine, load_module
from la_trt.engines.torch import TorchEngine
from la_trt.errors import BundleError, UsageError
from la_trt.limits import KV_DTYPES
from la_trt.lookworld import WorldConfig, sample
from la_trt.model import QwenVL
from tests.engines.conformance import EngineConformance, MakeEngine
from tests.engines.script import play, random_script, text_step
from tests.model.configs import random_model
from tests.native.helpers import (
    make_native_engine,
    native_bundle,
    needs_native,
    quantised_activations,
    round_model,
)

pytestmark = needs_native
KINDS = ("embed", "kv", "kv")
LEVELS = ("plain", "avx2", "avx512", "avx512_bf16", "amx")
ROUNDING_LEVELS = LEVELS[3:]  # bf16 weights and caches meet numbers that are rounded to bf16


class TestNativeEngine(EngineConformance):
    @pytest.fixture
    def make_engine(self, tmp_path: Path) -> MakeEngine:
        def make(model: QwenVL, **options: Any) -> Engine:
            return make_native_engine(model, tmp_path, **options)

        return make


def errors(got: Any, expected: Any) -> tuple[float, float]:
    """Largest difference of logits, in units of the largest logit; and of masses."""
    logits = max(
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(got.logits, expected.logits, strict=True)
    )
    masses = max(np.abs(a - b).max() for a, b in zip(got.mass, expected.mass, strict=True))
    return float(logits), float(masses)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize(
    ("weights", "block_size"),
    [("float32", 32), ("bfloat16", 32), ("int8", 32), ("int4", 32), ("int8", 128), ("int4", 128)],
)
def test_every_level_and_format(isa: str, weights: Format, block_size: int, tmp_path: Path) -> None:
    """Against torch on the very weights that the packed form stands for.

    Float formats meet float activations: float error. Codes meet activations that are rounded to
    8 bits, here as there; but a number near the middle of two codes may fall the other way, and
    one early on shifts all that follows. So only the best of three models must agree closely.
    Where products are of bf16, so are those of a tower that is not float32, and of bf16 weights.
    """
    if isa not in load_module().levels():
        pytest.skip(f"this processor lacks level {isa}")
    codes = weights.startswith("int")
    tower = "float32" if isa in ROUNDING_LEVELS else weights
    if weights == "bfloat16" and isa in ROUNDING_LEVELS:
        pytest.skip("test_products_of_bf16_are_as_close_as_pytorch")
    found = []
    for seed in (2, 3, 4):
        formats: dict[str, Any] = {"decoder": weights, "tower": tower, "block_size": block_size}
        options = {"isa": isa, "kv_dtype": "float32"}
        engine = make_native_engine(random_model(seed), tmp_path / str(seed), **formats, **options)
        script = random_script(engine.config, seed, kinds=KINDS)
        rounded = round_model(random_model(seed), **formats)
        if codes:
            rounded = quantised_activations(rounded, **formats)
        (got,), (expected,) = play(engine, [script]), play(TorchEngine(rounded), [script])
        found.append(errors(got, expected))
    logits, masses = zip(*found, strict=True)
    if codes:
        assert min(logits) < 5e-3 and min(masses) < 5e-4, found
    assert max(logits) < (0.15 if codes else 2e-5) and max(masses) < (0.02 if codes else 1e-5), (
        found
    )


@pytest.mark.parametrize("isa", ROUNDING_LEVELS)
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
def test_products_of_bf16_are_as_close_as_pytorch(isa: str, kv_dtype: str, tmp_path: Path) -> None:
    """At most twice as far from float32 on the same weights as PyTorch in bf16."""
    if isa not in load_module().levels():
        pytest.skip(f"this processor lacks level {isa}")
    for seed in (2, 3, 4):
        formats: dict[str, Any] = {"decoder": "bfloat16", "tower": "bfloat16"}
        options = {"isa": isa, "kv_dtype": kv_dtype}
        engine = make_native_engine(random_model(seed), tmp_path / str(seed), **formats, **options)
        script = random_script(engine.config, seed, kinds=KINDS)
        model = round_model(random_model(seed), **formats)
        (got,), (exact,) = play(engine, [script]), play(TorchEngine(model), [script])
        (torch_got,) = play(TorchEngine(model, dtype="bfloat16"), [script])
        ours, of_torch = errors(got, exact), errors(torch_got, exact)
        assert 0 < ours[0] < 2 * of_torch[0] and ours[1] < 2 * of_torch[1], (ours, of_torch)


def test_threads_change_nothing(tmp_path: Path) -> None:
    model = random_model(1)
    script = random_script(model.config, 1, kinds=KINDS)
    traces = [
        play(make_native_engine(model, tmp_path, threads=n, decoder="int4"), [script])[0]
        for n in (1, 2, 3)
    ]
    for trace in traces[1:]:
        np.testing.assert_array_equal(trace.logits, traces[0].logits)
        np.testing.assert_array_equal(trace.mass, traces[0].mass)


@pytest.mark.parametrize(
    ("kv_dtype", "most"), [("bfloat16", 0.02), ("float16", 0.003), ("int8", 0.03)]
)
def test_a_rounded_cache_is_close(kv_dtype: str, most: float, tmp_path: Path) -> None:
    model = random_model(0)
    script = random_script(model.config, 0, kinds=KINDS)
    (exact,) = play(make_native_engine(model, tmp_path), [script])
    (rough,) = play(make_native_engine(model, tmp_path, kv_dtype=kv_dtype), [script])
    logits, mass = errors(rough, exact)
    assert 0 < logits < most and mass < most / 6, (logits, mass)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_the_cache_is_float32_beside_float32_weights_alone(weights: Format, tmp_path: Path) -> None:
    engine = make_native_engine(random_model(0), tmp_path, decoder=weights)
    expected = "float32" if weights == "float32" else "bfloat16"
    assert engine.limits.details["kv_dtype"] == expected


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "int8"])
def test_a_rounded_cache_reads_back(kv_dtype: str, tmp_path: Path) -> None:
    model = random_model(1)
    caches = []
    for dtype in ("float32", kv_dtype):
        engine = make_native_engine(model, tmp_path, kv_dtype=dtype)
        slot = engine.alloc(20)
        engine.forward(text_step(slot, list(range(17)), 0))
        caches.append(engine.read_kv(slot))
    for exact, rough in zip(*caches, strict=True):
        step = np.abs(exact[0]).max(axis=-1) / 120  # the first layer: later ones see other inputs
        off = np.abs(exact[0] - rough[0]).max(axis=-1)
        assert (off < step).all(), (off / step).max()


def test_cache_equals_the_torch_engine(tmp_path: Path) -> None:
    model = random_model(5)
    script = random_script(model.config, 5, kinds=KINDS)
    engines = make_native_engine(model, tmp_path), TorchEngine(model)
    for engine in engines:
        play(engine, [script], free=False)
    for got, expected in zip(*(engine.read_kv(0) for engine in engines), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_copied_values_are_bitwise(tmp_path: Path) -> None:
    engine = make_native_engine(random_model(1), tmp_path)
    slot = engine.alloc(10)
    engine.forward(text_step(slot, [1, 2, 3, 4], 0))
    engine.kv_reinject(slot, np.array([2, 0]), 17)
    k, v = engine.read_kv(slot)
    np.testing.assert_array_equal(v[:, :, 4:], v[:, :, [2, 0]])
    assert np.abs(k[:, :, 4:] - k[:, :, [2, 0]]).max() > 0.01


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_rows_together_change_nothing(weights: Format, tmp_path: Path) -> None:
    """A prompt at once has rows enough for other kernels than the same prompt by pieces."""
    model = random_model(2)
    ids = np.random.default_rng(0).integers(0, model.config.text.vocab_size, 101).tolist()
    engine = make_native_engine(model, tmp_path, decoder=weights)
    whole, pieces = engine.alloc(101), engine.alloc(101)
    expected = engine.forward(text_step(whole, ids, 0)).logits
    for first in range(0, 101, 10):
        got = engine.forward(text_step(pieces, ids[first : first + 10], first)).logits
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("weights", "kv_dtype"),
    [*((w, "float32") for w in ("float32", "bfloat16", "int8")), *(("int4", k) for k in KV_DTYPES)],
)
@pytest.mark.parametrize("isa", LEVELS)
def test_guesses_change_no_bit(isa: str, weights: Format, kv_dtype: str, tmp_path: Path) -> None:
    """Tokens of one sequence in one step, behind another's chunk, and the same one by one."""
    if isa not in load_module().levels():
        pytest.skip(f"this processor lacks level {isa}")
    model = random_model(2)
    ids = np.random.default_rng(1).integers(0, model.config.text.vocab_size, 90).tolist()
    engine = make_native_engine(model, tmp_path, decoder=weights, kv_dtype=kv_dtype, isa=isa)
    alone, together, other = (engine.alloc(100) for _ in range(3))
    for slot in (alone, together):
        engine.forward(text_step(slot, ids[:85], 0))
    expected = [engine.forward(text_step(alone, [ids[n]], n)).logits[0] for n in range(85, 90)]
    parts = [text_step(other, ids[:30], 0), text_step(together, ids[85:], 85)]
    step = replace(
        parts[0],
        slots=(other, *[together] * 5),
        cu_seqlens=np.array([0, *range(30, 36)]),
        input_ids=np.concatenate([part.input_ids for part in parts]),
        position_ids=np.concatenate([part.position_ids for part in parts], axis=1),
    )
    got = engine.forward(step).logits[1:]
    np.testing.assert_array_equal(got, expected)
    for a, b in zip(engine.read_kv(alone), engine.read_kv(together), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["copy", "route"])
def test_guesses_change_no_answer_of_the_shipped_model(policy: str, tmp_path: Path) -> None:
    build(TINY_CHECKPOINT, tmp_path / "bundle", graphs=False)
    results: dict[int, list[Any]] = {}
    for num_guesses in (0, 3):
        model = LookAgain.from_bundle(tmp_path / "bundle", speculate=num_guesses, threads=2)
        for index, family in enumerate(("count", "describe")):
            drawn = sample("test", index, WorldConfig(), family)
            result = model.generate([drawn.image], drawn.question.text, policy=policy, masses=True)
            assert result.num_reflections > 0
            results.setdefault(num_guesses, []).append(result)
    drafter = model.session.drafter
    assert drafter is not None and 20 < drafter.num_accepted < drafter.num_drafted
    for plain, guessed in zip(results[0], results[3], strict=True):
        assert plain.tokens == guessed.tokens
        np.testing.assert_array_equal(plain.step_masses, guessed.step_masses)
        for a, b in zip(plain.reinjections, guessed.reinjections, strict=True):
            np.testing.assert_array_equal(a.selected, b.selected)


def test_long_prefill_runs_in_pieces(tmp_path: Path) -> None:
    model = random_model(3)
    ids = (np.arange(700) * 7 % 100).tolist()
    native, torch_engine = make_native_engine(model, tmp_path), TorchEngine(model)
    slots = [e.alloc(701) for e in (native, torch_engine)]
    got = native.forward(text_step(slots[0], ids, 0)).logits
    expected = torch_engine.forward(text_step(slots[1], ids, 0)).logits
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_what_is_not_asked_for_changes_nothing(weights: Format, tmp_path: Path) -> None:
    """The last layer leaves out tokens whose output nobody reads."""
    engine = make_native_engine(random_model(2), tmp_path, decoder=weights)
    width, vocab = engine.config.text.head_dim // 2, engine.config.text.vocab_size
    counts = (9, 70, 5, 66)
    ids = np.random.default_rng(0).integers(0, vocab, sum(counts))
    angles = np.concatenate([np.outer(np.arange(n), np.linspace(1, 0.1, width)) for n in counts])

    def run(asked: Sequence[tuple[bool, bool]]) -> list[tuple[Any, ...]]:
        """Logits, mass, keys and values of each sequence, `asked` for the first and the second."""
        slots = [engine.alloc(n) for n in counts]
        outs = [
            [
                np.empty(size, np.float32) if a else None
                for a, size in zip(pair, (vocab, n), strict=True)
            ]
            for pair, n in zip(asked, counts, strict=True)
        ]
        sequences = [(s, 0, n, *out) for s, n, out in zip(slots, counts, outs, strict=True)]
        cos, sin = (np.asarray(f(angles), np.float32) for f in (np.cos, np.sin))
        engine._decoder.forward(ids, None, None, cos, sin, sequences)
        for slot, n in zip(slots, counts, strict=True):
            engine._slots.grow(slot, n)
        found = [(*out, *engine.read_kv(slot)) for out, slot in zip(outs, slots, strict=True)]
        for slot in slots:
            engine.free(slot)
        return found

    everything = run([(True, True)] * 4)
    some = [(False, False), (True, False), (False, True), (True, True)]
    for asked in (some, [(False, False)] * 4):
        for pair, got, expected in zip(asked, run(asked), everything, strict=True):
            for wanted, one, other in zip((*pair, True, True), got, expected, strict=True):
                if wanted:
                    np.testing.assert_array_equal(one, other)


def test_the_environment_caps_the_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = native_bundle(random_model(0), tmp_path)
    assert NativeEngine(bundle).limits.details["isa"] == load_module().levels()[-1]
    monkeypatch.setenv("LATRT_ISA", "plain")
    assert NativeEngine(bundle).limits.details["isa"] == "plain"
    assert NativeEngine(bundle, isa="auto").limits.details["isa"] == "plain"
    monkeypatch.setenv("LATRT_ISA", "sse9")
    with pytest.raises(UsageError, match=r"LATRT_ISA: expected .*, got 'sse9'"):
        NativeEngine(bundle)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = random_model(0)
    bundle = native_bundle(model, tmp_path)
    with pytest.raises(UsageError, match="isa"):
        NativeEngine(bundle, isa="sse9")
    with pytest.raises(UsageError, match="kv_dtype"):
        NativeEngine(bundle, kv_dtype="float64")
    with pytest.raises(UsageError, match="max_len"):
        NativeEngine(bundle, max_len=4096)
    other = native_bundle(random_model(1), tmp_path / "other")
    mixed = type(bundle)(other.path, bundle.manifest)
    with pytest.raises(BundleError, match=r"expected f32 \["):
        NativeEngine(mixed)
    empty = type(bundle)(bundle.path, type(bundle.manifest)(**{
        **{f: getattr(bundle.manifest, f) for f in bundle.manifest.__slots__}, "files": ()
    }))  # fmt: skip
    with pytest.raises(BundleError, match="rebuild"):
        NativeEngine(empty)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    engine = make_native_engine(random_model(0), tmp_path)
    slot = engine.alloc(4)
    with pytest.raises(ValueError, match="vocabulary"):
        engine.forward(text_step(slot, [111], 0))
    assert engine.length(slot) == 0


def test_calls_of_nothing_and_of_no_slot_are_refused(tmp_path: Path) -> None:
    engine = make_native_engine(random_model(0), tmp_path)
    half = engine.config.text.head_dim // 2
    nothing = (np.zeros(0, np.int64), None, None, *[np.zeros((0, half), np.float32)] * 2, [])
    with pytest.raises(ValueError, match="input_ids: size"):
        engine._decoder.forward(*nothing)
    for slot in (-1, 7, 10**8):
        with pytest.raises(ValueError, match="free: slot"):
            engine._decoder.free(slot)
    angle = np.zeros(half, np.float32)
    with pytest.raises(ValueError, match="kv_reinject: slot"):
        engine._decoder.kv_reinject(engine.alloc(4), np.zeros(1, np.int64), 2**31 - 1, angle, angle)
