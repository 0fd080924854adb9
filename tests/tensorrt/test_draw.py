"""Tokens drawn on the (fake) GPU: those of the torch engine, and nothing but them comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from la_trt.engines.base import Draw, Engine
from la_trt.engines.torch import TorchEngine
from la_trt.events import DoneEvent, TokenEvent
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import Policy, Trigger, preset
from la_trt.sampling import Sampler, SamplingParams
from la_trt.session import Session
from tests.engines.script import random_script, text_step
from tests.model.configs import random_model
from tests.session.test_torch_end_to_end import PlainTokens, R, prompt_of
from tests.tensorrt.fake_trt import FakeCalls
from tests.tensorrt.helpers import emulated_calls, fake_engine, why_no_emulation
from tests.tensorrt.test_engine import POLICIES, bundle_of

SAMPLED = SamplingParams(temperature=1.3, top_k=40, top_p=0.95, seed=11)
Made = tuple[TorchEngine, Any, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The torch engine, the TensorRT engine of the same model, and the GPU under it."""
    model = random_model(3)
    bundle = bundle_of(model, tmp_path_factory.mktemp("draw"), max_len=512, chunk=16)
    engine, cuda, _ = fake_engine(bundle)
    return TorchEngine(model, max_batch=4, max_len=512), engine, cuda


def answers(engine: Engine, options: GenerationOptions) -> list[list[TokenEvent]]:
    """The tokens of two prompts side by side."""
    prompts = [prompt_of(random_script(engine.config, seed, kinds=())) for seed in (1, 2)]
    session = Session(engine, PlainTokens(), eos_token_ids=[], prefill_chunk=40)
    events = list(session.generate_batch(prompts, options))
    return [[e for e in events if isinstance(e, TokenEvent) and e.sequence == i] for i in range(2)]


def check_same(made: Made, options: GenerationOptions) -> int:
    """Tokens and log-probabilities of both engines; how many tokens the GPU drew."""
    reference, engine, cuda = made
    expected = answers(reference, options)
    before = cuda.ran.get("sample", 0)
    got = answers(engine, options)
    for mine, theirs in zip(got, expected, strict=True):
        assert [e.token_id for e in mine] == [e.token_id for e in theirs]
        np.testing.assert_allclose(
            [e.logprob for e in mine], [e.logprob for e in theirs], atol=1e-4
        )
        assert [e.forced for e in mine] == [e.forced for e in theirs]
    return int(cuda.ran.get("sample", 0) - before)


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_draws_the_tokens_of_the_torch_engine(
    name: str, sampling: SamplingParams, made: Made
) -> None:
    """The same seed gives the same tokens: both take the same numbers from one generator. The
    two forced tokens are not drawn.
    """
    kind, inject = POLICIES[name]
    policy = replace(preset(kind), inject=inject) if preset(kind).injects else preset(kind)
    options = GenerationOptions(
        policy=policy, sampling=sampling, max_tokens=12, ignore_eos=True, forced=(5, R)
    )
    assert check_same(made, options) > 0


ENTROPY = Policy(name="e", trigger=Trigger(kind="entropy", entropy_nats=0.1, min_gap=3))


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": SamplingParams(repetition_penalty=1.3)},
        {"sampling": replace(SAMPLED, repetition_penalty=1.3)},
        {"top_logprobs": 3},
        {"policy": ENTROPY},
        {"forced": tuple(range(8))},
    ],
    ids=["penalty", "penalty, sampled", "top_logprobs", "entropy", "forced"],
)
def test_what_the_gpu_cannot_draw_is_drawn_from_the_logits(
    changes: dict[str, Any], made: Made
) -> None:
    options = GenerationOptions(max_tokens=8, ignore_eos=True, **changes)
    assert check_same(made, options) == 0


def test_only_the_token_and_the_mass_come_back(tmp_path: Path) -> None:
    """12 bytes a sequence, 4 more for each visual key; one wait a pass, in graphs as outside."""
    bundle = bundle_of(random_model(2), tmp_path / "b", max_len=256)
    for graphs in (False, True):
        engine, cuda, _ = fake_engine(bundle, graphs=graphs)
        slots = [engine.alloc(100) for _ in range(2)]
        for slot in slots:
            engine.forward(text_step(slot, [1, 2, 3], 0))
        step = text_step(slots[0], [4], 3)
        step = replace(
            step,
            slots=tuple(slots),
            cu_seqlens=np.arange(3),
            input_ids=np.array([4, 5]),
            position_ids=np.full((3, 2), 3),
        )
        for draws in ((Draw(), Draw()), (None, Draw()), ()):
            for turn in range(3):
                cuda.counts.clear()
                before = cuda.downloaded_bytes
                output = engine.forward(replace(step, draws=draws))
                assert cuda.counts["synchronize"] == 1
                assert ("graph" in cuda.counts) == (graphs and turn > 0)
                taken = cuda.downloaded_bytes - before
                vocab = engine.config.text.vocab_size
                logits = 0 if all(draws) and draws else 2 * vocab * 4
                assert taken == logits + (2 * 12 if draws else 0)
                assert [d is not None for d in output.drawn] == [d is not None for d in draws]
                for slot in slots:
                    engine.truncate(slot, 3)
        engine.close()


def test_a_drawn_token_does_not_depend_on_who_else_is_there(made: Made) -> None:
    """Alone, beside a drawn one, beside one whose logits are wanted."""
    engine = made[1]
    slots = [engine.alloc(50) for _ in range(2)]
    drawn = []
    for beside in ((), (Draw(),), (None,)):
        count = 1 + len(beside)
        for slot in slots:
            engine.truncate(slot, 0)
            engine.forward(text_step(slot, [7, 8, 9], 0))
        step = replace(
            text_step(slots[0], [4], 3),
            slots=tuple(slots[:count]),
            cu_seqlens=np.arange(count + 1),
            input_ids=np.full(count, 4),
            position_ids=np.full((3, count), 3),
        )
        asked = Draw(temperature=2.0, uniform=0.37, top_k=30)
        drawn.append(engine.forward(replace(step, draws=(asked, *beside))).drawn[0])
    for slot in slots:
        engine.free(slot)
    assert drawn[0].token == drawn[1].token == drawn[2].token
    np.testing.assert_allclose([d.logprob for d in drawn], drawn[0].logprob, atol=1e-5)


def test_no_token_ends_the_answer(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.tensorrt.fake_trt._drawn", lambda *a, **k: (-1, float("nan")))
    engine = made[1]
    session = Session(engine, PlainTokens(), eos_token_ids=[])
    prompt = prompt_of(random_script(engine.config, 1, kinds=()))
    short = GenerationOptions(max_tokens=8)
    (done,) = [e for e in session.generate_batch([prompt], short) if isinstance(e, DoneEvent)]
    assert (done.result.finish_reason, done.result.tokens) == ("numerical_error", [])


def test_a_request_takes_the_number_that_a_draw_would(made: Made) -> None:
    """After requests and draws in any order the generator stands where it would have."""
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    for params in (SAMPLED, SamplingParams(), SamplingParams(temperature=1, top_k=1)):
        first, second = (Sampler(params, []) for _ in range(2))
        for turn in range(6):
            if turn % 2:
                first.request()
            else:
                first.draw(logits)
            second.draw(logits)
        assert first.request() == second.request()


@pytest.mark.skipif(bool(why_no_emulation()), reason=f"{why_no_emulation()} is not installed")
def test_the_kernel_itself_draws_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """latrt_sample of the plugin library, its kernel on the emulated thread model."""
    engine, cuda = made[1:]
    options = GenerationOptions(max_tokens=10, ignore_eos=True, sampling=SAMPLED)
    greedy = replace(options, sampling=SamplingParams(), policy=preset("never"))
    expected = [answers(engine, o) for o in (options, greedy)]
    assert isinstance(engine._decoder._calls, FakeCalls)
    kernels = emulated_calls(cuda)
    monkeypatch.setattr(engine._decoder, "_calls", kernels)
    engine._decoder._recorded.clear()  # graphs that were recorded with the other kernels
    got = [answers(engine, o) for o in (options, greedy)]
    assert kernels.launched["sample"] > 0
    for mine, theirs in zip(got, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert [e.token_id for e in a] == [e.token_id for e in b]
            np.testing.assert_allclose([e.logprob for e in a], [e.logprob for e in b], atol=1e-5)


def test_engines_that_cannot_draw_are_never_asked(made: Made) -> None:

    seen = []
    reference = made[0]

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(reference, name)

        def forward(self, step: Any) -> Any:
            seen.append(step.draws)
            return reference.forward(step)

    answers(Spy(), GenerationOptions(max_tokens=3))  # type: ignore[arg-type]
    assert seen and set(seen) == {()}
