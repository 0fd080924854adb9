"""Questions, rollouts through the session, and the sequences that are trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from la_trt.errors import InputError, UsageError
from la_trt.lookworld import WorldConfig
from la_trt.model import QwenVL
from la_trt.model.weights import load_model
from la_trt.processor.prompt import Processor
from la_trt.reattention.policy import Policy, Select, Trigger, preset
from la_trt.session import Session
from tests.tiny import write_tiny_checkpoint
from train import policy as policy_module
from train.batch import collate
from train.policy import answer_logprobs
from train.rewards import RewardConfig
from train.rollout import (
    RolloutConfig,
    banned_tokens,
    engine_factory,
    roll_out,
    summary,
    torch_engine,
    training_sequence,
)
from train.tasks import HALF, FileTasks, LookWorldTasks, answer_seed, with_pixel_limit
from train.turns import LookWorldTurns

CONFIG = RolloutConfig(
    questions=2, group_size=3, max_completion=11, max_length=900, batch=4, max_pixels=84 * 84
)
EVERY = Trigger(kind="every", every_tokens=4)
KEEP = RewardConfig(truncated="keep", ideal_length=2.0)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("rollout") / "ckpt")


@pytest.fixture(scope="module")
def model(ckpt: Path) -> QwenVL:
    return load_model(ckpt)


@pytest.fixture(scope="module")
def processor(ckpt: Path) -> Processor:
    return with_pixel_limit(Processor.from_pretrained(ckpt), CONFIG.max_pixels)


@pytest.fixture(scope="module")
def draw(model: QwenVL, processor: Processor) -> Callable[..., tuple]:
    """Tasks and answers of a policy."""

    def run(policy: Policy, rewards: RewardConfig = KEEP, first: int = 0, **changed: object):  # type: ignore[no-untyped-def]
        config = replace(CONFIG, **changed)  # type: ignore[arg-type]
        source = LookWorldTasks(processor, seed=3, position=first)
        tasks = [source.take() for _ in range(config.questions)]
        session = Session(torch_engine(model, config), processor.vocabulary)
        return tasks, roll_out(session, tasks, policy, config, rewards)

    return run


def test_engine_shares_the_trainers_weights(model: QwenVL) -> None:
    assert torch_engine(model, CONFIG)._model is model


def test_groups_differ_within_and_repeat_exactly(draw: Callable[..., tuple]) -> None:
    tasks, answers = draw(preset("text"))
    assert [a.question for a in answers] == [0, 0, 0, 1, 1, 1]
    said = [tuple(a.result.tokens) for a in answers]
    assert len(set(said)) == 6
    again = [tuple(a.result.tokens) for a in draw(preset("text"))[1]]
    assert again == said
    # alone or in a batch, and wherever the question stands: the same
    _, alone = draw(preset("text"), first=1, questions=1, batch=1)
    assert [tuple(a.result.tokens) for a in alone] == said[3:]
    assert tasks[0].seed != tasks[1].seed


def test_other_engines_draw_the_same(model: QwenVL, processor: Processor, ckpt: Path) -> None:
    source = LookWorldTasks(processor, seed=3)
    tasks = [source.take() for _ in range(2)]
    said = []
    engines = ["torch", "onnx", "native"]
    if find_spec("la_trt._native") is None:
        engines.remove("native")
    for engine in engines:
        config = replace(CONFIG, engine=engine)
        session = Session(engine_factory(config, ckpt)(model), processor.vocabulary)
        answers = roll_out(session, tasks, POLICIES["route"], config, KEEP)
        assert answers[0].result.engine == engine
        said.append([a.result.tokens for a in answers])
    assert all(tokens == said[0] for tokens in said)


POLICIES = {
    "text": preset("text"),
    "never": preset("never"),
    "embed": Policy(name="embed", trigger=EVERY),
    "kv": Policy(name="kv", trigger=EVERY, inject="kv"),
    "route": Policy(name="route", trigger=EVERY, select=Select(kind="route", percent=40)),
    "route-kv": Policy(
        name="route-kv", trigger=EVERY, select=Select(kind="route", percent=40), inject="kv"
    ),
    "random": Policy(name="random", trigger=EVERY, select=Select(kind="random", percent=40)),
    "one": Policy(name="one", trigger=EVERY, max_reflections=1),
}


@pytest.mark.parametrize("name", POLICIES)
def test_training_passes_give_the_engines_logprobs(
    name: str, model: QwenVL, processor: Processor, draw: Callable[..., tuple]
) -> None:
    policy = POLICIES[name]
    tasks, answers = draw(policy)
    sequences = [training_sequence(tasks[a.question], a, policy, model.config) for a in answers]
    assert any(a.result.usage.reinjected_tokens for a in answers) == policy.injects
    with torch.no_grad():
        logprobs, entropy, mask = answer_logprobs(model, collate(sequences))
    engine = np.concatenate([a.logprobs[a.drawn] for a in answers])
    np.testing.assert_allclose(logprobs[mask].numpy(), engine, atol=1e-4, rtol=0)
    assert not logprobs[~mask].any() and (entropy[mask] > 0).all()
    banned = banned_tokens(policy, processor.vocabulary)
    assert bool(banned) == (name == "never")


def test_forced_tokens_carry_no_loss(model: QwenVL, draw: Callable[..., tuple]) -> None:
    policy = preset("text")
    tasks, answers = draw(policy)
    drawn = answers[0].drawn.copy()
    drawn[2:5] = False
    forced = replace(answers[0], drawn=drawn)
    batch = collate([training_sequence(tasks[0], forced, policy, model.config)])
    assert batch.counts == (int(drawn.sum()),)
    with torch.no_grad():
        logprobs, _, mask = answer_logprobs(model, batch)
    np.testing.assert_allclose(logprobs[mask].numpy(), forced.logprobs[drawn], atol=1e-4, rtol=0)


def test_banned_and_warm_logprobs_are_those_of_the_sampler(
    model: QwenVL, draw: Callable[..., tuple]
) -> None:
    policy = preset("text")
    tasks, answers = draw(policy)
    batch = collate([training_sequence(tasks[0], answers[0], policy, model.config)])
    tag = 0 if answers[0].result.tokens[0] else 1
    with torch.no_grad():
        plain = answer_logprobs(model, batch)[0]
        without = answer_logprobs(model, batch, banned=[tag])[0]
        warm = answer_logprobs(model, batch, temperature=2.0)[0]
    assert (without >= plain).all() and (without > plain).any()
    assert not torch.equal(warm, plain)


def test_logits_in_pieces_are_the_whole(
    model: QwenVL, draw: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = preset("text")
    tasks, answers = draw(policy)
    batch = collate(
        [training_sequence(tasks[a.question], a, policy, model.config) for a in answers]
    )

    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model.zero_grad()
        logprobs, entropy, mask = answer_logprobs(model, batch)
        logprobs[mask].square().sum().backward()
        gradient = model.lm_head.weight.grad
        assert gradient is not None
        return logprobs.detach(), entropy, gradient.clone()

    whole = run()
    monkeypatch.setattr(policy_module, "LOGIT_ELEMENTS", 7 * model.config.text.vocab_size)
    for a, b in zip(whole, run(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    model.zero_grad(set_to_none=True)


def test_truncated_answers(draw: Callable[..., tuple]) -> None:
    kept = draw(preset("text"), KEEP, group_size=8)[1]
    cut = [a.truncated for a in kept]
    assert any(cut) and not all(cut)
    assert cut == [len(a.result.tokens) == CONFIG.max_completion for a in kept]
    zero = draw(preset("text"), replace(KEEP, truncated="zero", no_reflection=1.0), group_size=8)[1]
    assert [a.rewards.total for a in zero] == [float(not c) for c in cut]
    for group in (slice(0, 8), slice(8, 16)):
        mixed = 0 < sum(cut[group]) < 8
        expected = [(-1 if c else 1) if mixed else 0 for c in cut[group]]
        assert [np.sign(a.advantage) for a in zero[group]] == expected
    assert all(a.kept for a in zero)
    masked = draw(preset("text"), replace(KEEP, truncated="mask", no_reflection=1.0), group_size=8)[
        1
    ]
    assert [a.kept for a in masked] == [not c for c in cut]
    assert not any(a.advantage for a in masked)  # those that are left are equal
    found = summary(masked, 8)
    assert found["left_out_frac"] == found["truncated_frac"] == sum(cut) / len(cut)


def test_rewards_come_from_what_was_said(
    draw: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def judge(text: str, answer: str, **rest: object):  # type: ignore[no-untyped-def]
        from train.rewards import reward_answer

        seen.append((text, answer, rest["num_reflections"], rest["num_reflection_tokens"]))
        made = reward_answer(text, answer, **rest)  # type: ignore[arg-type]
        return replace(made, total=float(len(seen) % 3))

    monkeypatch.setattr("train.rollout.reward_answer", judge)
    tasks, answers = draw(preset("text"))
    assert [answer for _, answer, _, _ in seen] == [t.answer for t in tasks for _ in range(3)]
    assert [text for text, *_ in seen] == [a.result.text for a in answers]
    # totals 1, 2, 0: mean 1, std sqrt(2 / 3), so 0, 1.2247449, -1.2247449
    expected = [0.0, 1.5**0.5, -(1.5**0.5)] * 2
    assert [a.advantage for a in answers] == pytest.approx(expected)
    assert summary(answers, 3)["reward_std"] == pytest.approx((2 / 3) ** 0.5)


def test_reflections_are_counted_without_the_end_token(
    tmp_path: Path, processor: Processor
) -> None:
    always = load_model(write_tiny_checkpoint(tmp_path / "ckpt", always=("<REFLECTION>",)))
    task = LookWorldTasks(processor, seed=0).take()
    session = Session(torch_engine(always, CONFIG), processor.vocabulary)
    answers = roll_out(session, [task], preset("text"), CONFIG, KEEP)
    assert [a.num_reflections for a in answers] == [11, 11, 11]
    assert [a.num_reflection_tokens for a in answers] == [0, 0, 0]
    assert [a.rewards.balance for a in answers] == [0.0, 0.0, 0.0]
    assert [a.advantage for a in answers] == [0.0, 0.0, 0.0]
    # vision-only: every second token is forced
    answers = roll_out(session, [task], preset("vision"), CONFIG, KEEP)
    assert answers[0].drawn.tolist() == [True, False] * 5 + [True]
    assert answers[0].num_reflections == 6


def test_lookworld_tasks_go_on_from_a_position(processor: Processor) -> None:
    source = LookWorldTasks(processor, seed=1)
    first = [source.take() for _ in range(4)]
    later = LookWorldTasks(processor, seed=1, position=2)
    for task in first[2:]:
        again = later.take()
        assert (again.prompt.text, again.answer, again.seed) == (
            task.prompt.text,
            task.answer,
            task.seed,
        )
        np.testing.assert_array_equal(again.prompt.pixel_values, task.prompt.pixel_values)
    other = LookWorldTasks(processor, seed=2).take()
    assert other.prompt.text != first[0].prompt.text or other.seed != first[0].seed
    assert answer_seed(1, 0) != answer_seed(0, 1) and 0 <= answer_seed(59, 10**12) < 1 << 63
    with pytest.raises(UsageError, match="seed"):
        LookWorldTasks(processor, seed=60)


def test_brpo_never_asks_what_sft_learns_from(processor: Processor) -> None:
    first, later = (LookWorldTasks(processor, seed=1, position=p).take() for p in (0, HALF))
    learnt = LookWorldTurns(
        processor, seed=1, world=WorldConfig(), policy=preset("copy"), max_length=4096
    ).take()
    assert first.prompt.text == later.prompt.text != learnt.prompt.text
    assert first.seed != later.seed


def rows_of_a_file(path: Path) -> Path:
    from train.rows import LookWorldRef, lookworld_example

    lines = []
    for index in range(3):
        ref = LookWorldRef(split="train", index=index, family="count")
        example = lookworld_example(ref)
        lines.append({"lookworld": ref.to_json(), "question": example.question})
    long = LookWorldRef(split="train", index=9, family="count")
    made = lookworld_example(long)
    lines.append({"image": "missing.png", "question": "How many?", "answer": "3"})
    lines.append({"lookworld": long.to_json(), "question": made.question, "answer": made.answer})
    path.write_text("\n".join(json.dumps(row) for row in lines) + "\nnot json\n")
    return path


def test_file_tasks_skip_and_count_bad_rows(tmp_path: Path, processor: Processor) -> None:
    path = rows_of_a_file(tmp_path / "questions.jsonl")
    source = FileTasks(processor, path, seed=0, max_prompt=200)
    taken = [source.take() for _ in range(9)]
    assert len({t.prompt.text for t in taken}) == 4 and len({t.seed for t in taken}) == 9
    assert source.position >= 13 and source.skipped.total() == source.position - 9
    assert all(t.answer.isdecimal() for t in taken)
    resumed = FileTasks(processor, path, seed=0, max_prompt=200, position=source.position)
    assert resumed.take().seed == source.take().seed
    with pytest.raises(InputError, match="no question fits 10 tokens"):
        FileTasks(processor, path, seed=0, max_prompt=10).take()


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"group_size": 0}, {"max_length": 5, "max_completion": 5}]
)
def test_rollout_config_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        RolloutConfig(**wrong)  # type: ignore[arg-type]
