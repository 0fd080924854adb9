"""The TensorRT engine over a fake of the CUDA and TensorRT calls: the whole of its host side."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from la_trt.engines.base import Engine, Step, VisualKeys
from la_trt.engines.tensorrt import TensorRTEngine
from la_trt.engines.torch import TorchEngine
from la_trt.errors import BundleError, MachineError, UsageError
from la_trt.files.bundle import Bundle
from la_trt.model import QwenVL
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import preset
from la_trt.session import Session
from tests.engines.conformance import EngineConformance, MakeEngine
from tests.engines.script import Tokens, random_script, text_step
from tests.model.configs import random_model
from tests.onnx.helpers import ModelWeights
from tests.session.test_torch_end_to_end import PlainTokens, R, prompt_of
from tests.tensorrt.fake_cuda import FakeCuda
from tests.tensorrt.helpers import fake_bundle, fake_engine, with_record


def bundle_of(model: QwenVL, path: Path, **options: Any) -> Bundle:
    return fake_bundle(model.config, ModelWeights(model), path, **options)


class TestTensorRTEngine(EngineConformance):
    @pytest.fixture(params=range(3))
    def seed(self, request: pytest.FixtureRequest) -> int:
        return int(request.param)

    @pytest.fixture
    def make_engine(self, tmp_path: Path) -> MakeEngine:
        def make(model: QwenVL, *, max_batch: int = 4, max_len: int = 2048) -> Engine:
            bundle = bundle_of(model, tmp_path / "b", max_batch=max_batch, max_len=max_len)
            return fake_engine(bundle)[0]

        return make


POLICIES = {
    "never": ("never", "embed"),
    "copy": ("copy", "embed"),
    "copy, kv": ("copy", "kv"),
    "route": ("route", "embed"),
    "route, kv": ("route", "kv"),
    "text": ("text", "embed"),
    "vision": ("vision", "embed"),
    "random": ("random", "embed"),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchEngine, TensorRTEngine]:
    model = random_model(3)
    bundle = bundle_of(model, tmp_path_factory.mktemp("session"), max_len=512, chunk=16)
    return TorchEngine(model, max_batch=4, max_len=512), fake_engine(bundle)[0]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_gives_the_tokens_of_the_torch_engine(
    name: str, engines: tuple[TorchEngine, TensorRTEngine]
) -> None:
    """Two prompts side by side, each made to reflect twice: tokens, masses, selections."""
    kind, inject = POLICIES[name]
    policy = replace(preset(kind), inject=inject) if preset(kind).injects else preset(kind)
    options = GenerationOptions(
        policy=policy, max_tokens=14, ignore_eos=True, forced=(5, R, 7, 8, R), masses=True
    )
    results = []
    for engine in engines:
        scripts = [random_script(engine.config, seed, kinds=()) for seed in (1, 2)]
        session = Session(engine, PlainTokens(), eos_token_ids=[], prefill_chunk=40)
        results.append(session.results([prompt_of(s) for s in scripts], options))
    for expected, got in zip(*results, strict=True):
        assert got.tokens == expected.tokens
        assert len(got.tokens) == 14
        np.testing.assert_allclose(got.step_masses, expected.step_masses, atol=1e-5)
        chosen = [[r.selected.tolist() for r in result.reinjections] for result in (got, expected)]
        assert chosen[0] == chosen[1]
        assert any(len(c) for c in chosen[0]) == policy.injects


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    bundle = bundle_of(random_model(2), tmp_path / "b", max_len=256)
    return fake_engine(bundle)


def test_decoding_waits_once_a_token_and_replays_a_graph(opened: Any) -> None:
    """The first token of a shape runs, the second is recorded, every one from then on replayed;
    an injection between two replays goes into the same stream and nobody waits for it.
    """
    engine, cuda, _ = opened
    slot = engine.alloc(200)
    engine.forward(text_step(slot, [1, 2, 3, 4], 0))
    keys = VisualKeys(kv_index=np.arange(3), source=np.arange(3), num_visual=3)
    for i in range(4, 8):
        cuda.counts.clear()
        engine.forward(replace(text_step(slot, [i], i), visual_keys=(keys,)))
        assert cuda.counts["synchronize"] == 1
        assert cuda.counts.get("graph", 0) == (0 if i == 4 else 1)
        assert ("enqueue" in cuda.counts) == (i < 6), "a replayed pass was enqueued anew"
    cuda.counts.clear()
    engine.kv_reinject(slot, np.array([1, 2]), 9)
    assert cuda.counts == {"upload": 1, "kv_reinject": 1}
    assert len(cuda.queue) == 4, "the injection is in the stream between its events, not done"
    engine.forward(replace(text_step(slot, [9], 20), visual_keys=(keys,)))
    assert cuda.counts["graph"] == 1
    assert len(cuda.graphs) == 1


def test_a_run_gets_the_visual_rows_that_it_takes_of_a_table_of_any_size(opened: Any) -> None:
    """As many sequences share a step as there are slots, each with a table of its own."""
    engine, _, _ = opened
    script = random_script(engine.config, 5)
    embeds, tokens = engine.vision(script.pixels, script.grid_thw), script.ops[0]
    assert isinstance(tokens, Tokens)
    logits = []
    for others in (0, 1000):
        step = Step(
            slots=(engine.alloc(200),),
            cu_seqlens=np.array([0, len(tokens.ids)]),
            input_ids=tokens.ids,
            position_ids=tokens.positions,
            visual_row=np.where(tokens.rows >= 0, tokens.rows + others, -1),
            visual_embeds=np.concatenate([np.full((others, embeds.shape[1]), 9e9), embeds]).astype(
                np.float32
            ),
        )
        logits.append(engine.forward(step).logits)
    np.testing.assert_array_equal(*logits)


def test_no_memory_is_allocated_after_the_start_nor_held_after_the_end(opened: Any) -> None:
    engine, cuda, module = opened
    held, pinned = set(cuda.allocations), set(cuda.host)
    script = random_script(engine.config, 5)
    engine.vision(script.pixels, script.grid_thw)
    slot = engine.alloc(150)
    for step in ([3] * 120, [4], [5], [6]):
        engine.forward(text_step(slot, step, engine.length(slot)))
    engine.kv_reinject(slot, np.arange(8), 3)
    assert (set(cuda.allocations), set(cuda.host)) == (held, pinned)
    plans = [weakref.ref(plan) for plan in module.engines]
    module.engines.clear()
    engine.close()
    gc.collect()
    assert len(plans) == 2 and not any(plan() for plan in plans), "their weights are still there"
    assert not cuda.allocations and not cuda.host and not cuda.graphs and not cuda.stream
    assert not cuda.events


def test_many_injections_before_a_pass_keep_their_tables(tmp_path: Path) -> None:
    """More of them than there are tables: each still copies what it was asked to."""
    model = random_model(2)
    engines = [
        fake_engine(bundle_of(model, tmp_path / "b", max_len=256))[0],
        TorchEngine(model, max_batch=1, max_len=256),
    ]
    logits = []
    for engine in engines:
        slot = engine.alloc(200)
        engine.forward(text_step(slot, list(range(10)), 0))
        for i in range(40):
            engine.kv_reinject(slot, np.array([i % 10, (3 * i) % 10]), i + 1)
        logits.append(engine.forward(text_step(slot, [7], 60)).logits)
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_few_graphs_are_kept(tmp_path: Path) -> None:
    bundle = bundle_of(random_model(2), tmp_path / "b", max_batch=12, max_len=64)
    engine, cuda, _ = fake_engine(bundle)
    slots = [engine.alloc(40) for _ in range(12)]
    for slot in slots:
        for i in range(3):
            engine.forward(text_step(slot, [i], i))
    assert len(cuda.graphs) == 8


def test_without_graphs_the_same(tmp_path: Path) -> None:
    bundle = bundle_of(random_model(2), tmp_path / "b", max_len=64)
    logits = []
    for graphs in (True, False):
        engine, cuda, _ = fake_engine(bundle, graphs=graphs)
        slot = engine.alloc(40)
        engine.forward(text_step(slot, [1, 2, 3], 0))
        logits.append([engine.forward(text_step(slot, [i], i)).logits for i in range(3, 8)])
        assert bool(cuda.counts.get("graph")) == graphs
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"version": "9.9"}, "E_ENGINE_VERSION"),
        ({"runtime": "tensorrt"}, "E_ENGINE_VERSION"),
        ({"plugin_sha256": "0" * 64}, "E_ENGINE_PLUGIN"),
    ],
)
def test_what_does_not_match_is_refused_with_the_command(
    changes: dict[str, str], name: str, tmp_path: Path
) -> None:
    bundle = with_record(bundle_of(random_model(2), tmp_path / "b"), **changes)
    with pytest.raises(BundleError, match=r"rebuild: la-trt build .* --sm 89 --dtype") as refused:
        fake_engine(bundle)
    assert refused.value.name == name


def test_another_gpu_is_refused_and_everything_freed(tmp_path: Path) -> None:
    bundle = bundle_of(random_model(2), tmp_path / "b")
    cuda = FakeCuda(sm=120)
    with pytest.raises(BundleError, match=r"this GPU is SM 120\n.*--sm 120") as refused:
        fake_engine(bundle, cuda=cuda)
    assert refused.value.name == "E_SM"
    assert not cuda.allocations and not cuda.stream


def test_a_full_gpu_is_an_error_and_everything_freed(tmp_path: Path) -> None:
    bundle = bundle_of(random_model(2), tmp_path / "b")
    cuda = FakeCuda(memory_bytes=1 << 16)
    with pytest.raises(MachineError, match="max_batch") as refused:
        fake_engine(bundle, cuda=cuda)
    assert refused.value.name == "E_MEMORY"
    assert not cuda.allocations and not cuda.stream


def test_limits_are_those_of_the_build(tmp_path: Path) -> None:
    bundle = bundle_of(random_model(2), tmp_path / "b", max_batch=2, max_len=64)
    engine = fake_engine(bundle)[0]
    assert (engine.limits.max_batch, engine.limits.max_len) == (2, 64)
    for wrong in ({"max_batch": 3}, {"max_len": 65}, {"max_batch": 0}):
        with pytest.raises(UsageError):
            fake_engine(bundle, **wrong)


def test_a_plan_with_other_bindings_or_a_copied_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(random_model(2), tmp_path / "b")
    plan = bundle.file("tensorrt/sm89/decoder.engine")
    good = plan.read_text()
    for old, new, what in (
        ("logits_row", "logits_rows", "binding"),
        ('"visual_index", "int64"', '"visual_index", "int32"', "visual_index"),
        ("{", "[", "cannot read"),
    ):
        plan.write_text(good.replace(old, new, 1 if old == "{" else -1))
        with pytest.raises(BundleError, match=what) as refused:
            fake_engine(bundle)
        assert refused.value.name == "E_PLAN"
    plan.write_text(good)
    monkeypatch.setattr(
        "tests.tensorrt.fake_trt.FakeEngine.get_aliased_input_tensor", lambda self, name: ""
    )
    with pytest.raises(BundleError, match="does not share the memory"):
        fake_engine(bundle)
