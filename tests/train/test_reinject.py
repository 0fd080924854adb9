"""Training sequences against the session: same tokens, same copies, same log-probabilities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from la_trt.config import ModelConfig
from la_trt.engines.torch import TorchEngine
from la_trt.errors import UsageError
from la_trt.events import Result, TokenEvent
from la_trt.model import QwenVL
from la_trt.processor.mrope import prompt_positions
from la_trt.processor.types import Prompt
from la_trt.reattention.policy import Policy, Select, Trigger, preset
from la_trt.session import GenerationOptions, Session
from tests.model.configs import random_grids, random_model, random_pixels, random_prompt
from train.batch import IGNORE, TrainingSequence, collate
from train.learner import Learner
from train.reinject import Injection, Masses, Turn, build_sequences, lay_out

R, R_END = 105, 106
# One, none, several, first of all, two in a row, last of all.
ANSWERS = [
    (3, 5, R, 8, R_END, 9, 104),
    (4, 7, 104),
    (3, R, 5, 6, R_END, R, 9, 1, R, 2, 3),
    (R, 1, 2),
    (8, R, R, 7, R),
    (1, R),
    (R,),
]


class PlainTokens:
    """Every id is one letter; two of them are the tags."""

    special_ids: frozenset[int] = frozenset()

    def token_id(self, token: str) -> int | None:
        return {"<REFLECTION>": R, "</REFLECTION>": R_END}.get(token)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([33 + token_id % 90])


def build_sequence(
    turn: Turn, policy: Policy, config: ModelConfig, masses: Masses | None = None
) -> TrainingSequence:
    """The sequence of one turn."""
    return build_sequences([turn], policy, reflection_id=R, config=config, masses=masses)[0]


def prompt_of(config: ModelConfig, seed: int) -> Prompt:
    """A prompt with one to three images."""
    grid = random_grids(config, seed, max_side=4)
    ids = random_prompt(config, grid, seed)
    is_image = ids == config.image_token_id
    rows = np.where(is_image, is_image.cumsum() - 1, -1)
    positions, following = prompt_positions(rows, grid, config.vision.spatial_merge_size)
    return Prompt(
        text="",
        input_ids=ids,
        visual_row=rows,
        position_ids=positions,
        pixel_values=random_pixels(config, grid, seed),
        image_grid_thw=grid,
        next_position=following,
    )


def engine_log_probs(
    model: QwenVL, prompt: Prompt, response: tuple[int, ...], policy: Policy
) -> tuple[list[float], Result]:
    session = Session(
        TorchEngine(model, max_batch=1, max_len=4000), PlainTokens(), eos_token_ids=[]
    )
    options = GenerationOptions(policy=policy, forced=response, max_tokens=len(response))
    events = list(session.stream(prompt, options))
    return [e.logprob for e in events if isinstance(e, TokenEvent)], events[-1].result


def policies() -> list[Policy]:
    """Every policy, kind of injection and share that training knows."""
    found = [preset("text"), replace(preset("copy"), trigger=Trigger(kind="every", every_tokens=2))]
    for inject in ("embed", "kv"):
        found += [replace(preset(name), inject=inject) for name in ("copy", "random")]
        for percent in (25, 50, 100):
            select = Select(kind="route", percent=percent)
            found.append(replace(preset("route"), select=select, inject=inject))
    return [*found, replace(found[4], max_reflections=2), replace(found[-2], max_reflections=1)]


def name_of(policy: Policy) -> str:
    return f"{policy.name}-{policy.inject}-{policy.select.percent:g}-{policy.max_reflections}"


def own_masses(learner: Learner) -> Masses:
    return lambda batch, query: learner.masses(batch, query, learner.see(batch))


CASES = [(policy, 2 * (i % 3)) for i, policy in enumerate(policies())]


@pytest.mark.parametrize(("policy", "seed"), CASES, ids=[name_of(p) for p, _ in CASES])
def test_trainer_and_engine_agree(policy: Policy, seed: int) -> None:
    """Log-probabilities to 1e-4 and the chosen tokens, of a padded batch of all answers."""
    model = random_model(seed)
    prompts = [prompt_of(model.config, 10 * seed + i) for i in range(len(ANSWERS))]
    assert len({len(p.image_grid_thw) for p in prompts}) > 1
    turns = [
        Turn(prompt=p, response_ids=np.array(a)) for p, a in zip(prompts, ANSWERS, strict=True)
    ]
    learner = Learner(model)
    sequences = build_sequences(
        turns, policy, reflection_id=R, config=model.config, masses=own_masses(learner)
    )
    batch = collate(sequences)
    with torch.no_grad():
        found = learner.log_probs(batch, learner.see(batch)).split(batch.counts)
    num_injected = 0
    for turn, sequence, ours in zip(turns, sequences, found, strict=True):
        answer = tuple(turn.response_ids.tolist())
        expected, result = engine_log_probs(model, turn.prompt, answer, policy)
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4, rtol=0)
        own = [
            Injection(step=r.step, selected=r.selected)
            for r in result.reinjections
            if not r.skipped
        ]
        num_injected += len(own)
        replayed = lay_out(turn, own, inject=policy.inject, config=model.config)
        for field in ("input_ids", "visual_row", "position_ids", "copy_source", "copy_delta"):
            np.testing.assert_array_equal(getattr(replayed, field), getattr(sequence, field))
    assert (num_injected > 3) == policy.injects


def test_copies_carry_no_loss_and_the_mask_is_kept() -> None:
    model = random_model(2)
    prompt = prompt_of(model.config, 20)
    response = np.array([3, R, 5, R_END, R, 104])
    learn = np.array([True, True, False, True, False, True])
    for inject in ("embed", "kv"):
        policy = replace(preset("copy"), inject=inject)
        turn = Turn(prompt=prompt, response_ids=response, learn=learn)
        sequence = build_sequence(turn, policy, model.config)
        num = prompt.num_visual
        assert len(sequence) == len(prompt.input_ids) + 5 + 2 * num
        assert (sequence.targets[sequence.visual_row >= 0] == IGNORE).all()
        assert sequence.targets[sequence.targets != IGNORE].tolist() == [3, R, R_END, 104]
        np.testing.assert_array_equal(
            sequence.input_ids[sequence.predicts[1:]], response[:-1], strict=True
        )


@pytest.mark.parametrize("inject", ["embed", "kv"])
def test_gradients_reach_the_first_view_through_the_copies(inject: str) -> None:
    """Against a central difference of the loss after the copies, in float64."""
    model = random_model(2).double()
    prompt = prompt_of(model.config, 21)
    turn = Turn(
        prompt=replace(prompt, pixel_values=prompt.pixel_values.astype(np.float64)),
        response_ids=np.array([3, R, 5, 6]),
        learn=np.array([False, False, True, True]),
    )
    policy = replace(preset("copy"), inject=inject)
    sequence = build_sequence(turn, policy, model.config)
    batch, learner = collate([sequence]), Learner(model, train_vision=True)
    learner.log_probs(batch, learner.see(batch)).mean().backward()
    parameter = model.visual.merger.mlp[2].weight
    gradient = parameter.grad
    assert gradient is not None
    direction = torch.randn(
        parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            parameter += sign * 1e-5 * direction
            values.append(float(learner.log_probs(batch, learner.see(batch)).mean()))
            parameter -= sign * 1e-5 * direction
    slope = (values[0] - values[1]) / 2e-5
    assert abs(slope) > 1e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-2)


def test_answers_to_one_prompt_share_its_images() -> None:
    model = random_model(2)
    prompt = prompt_of(model.config, 22)
    turns = [Turn(prompt=prompt, response_ids=np.array(a)) for a in ANSWERS[:3]]
    policy = preset("copy")
    sequences = build_sequences(turns, policy, reflection_id=R, config=model.config)
    batch, learner = collate(sequences), Learner(model)
    assert len(batch.image_grid_thw_N3) == len(prompt.image_grid_thw)
    with torch.no_grad():
        found = learner.log_probs(batch, learner.see(batch)).split(batch.counts)
        for sequence, together in zip(sequences, found, strict=True):
            alone = collate([sequence])
            torch.testing.assert_close(
                learner.log_probs(alone, learner.see(alone)), together, atol=1e-5, rtol=0
            )


def test_a_trigger_that_depends_on_sampling_is_refused() -> None:
    model = random_model(2)
    turn = Turn(prompt=prompt_of(model.config, 23), response_ids=np.array([3, R, 4]))
    policy = replace(preset("copy"), trigger=Trigger(kind="entropy"))
    with pytest.raises(UsageError, match="entropy"):
        build_sequence(turn, policy, model.config)


def test_training_goes_backward_after_a_rollout_of_the_same_picture() -> None:
    model = random_model(2)
    prompt = prompt_of(model.config, 24)
    engine_log_probs(model, prompt, (3, R, 4), preset("route"))
    turn = Turn(prompt=prompt, response_ids=np.array([3, R, 4]))
    sequence = build_sequence(turn, preset("copy"), model.config)
    batch, learner = collate([sequence]), Learner(model, train_vision=True)
    learner.log_probs(batch, learner.see(batch)).sum().backward()
    assert all(p.grad is not None for p in learner.parameters())


def test_text_alone_can_be_learnt() -> None:
    """A prompt without a picture: nothing to put in, and a way back for every parameter."""
    model = random_model(2)
    engine_prompt = prompt_of(model.config, 25)
    ids = engine_prompt.input_ids[engine_prompt.visual_row < 0]
    prompt = replace(
        engine_prompt,
        input_ids=ids,
        visual_row=np.full(len(ids), -1),
        position_ids=np.tile(np.arange(len(ids)), (3, 1)),
        pixel_values=engine_prompt.pixel_values[:0],
        image_grid_thw=engine_prompt.image_grid_thw[:0],
        next_position=len(ids),
    )
    turn, policy = Turn(prompt=prompt, response_ids=np.array([3, R, 4])), preset("route")
    learner = Learner(model, train_vision=True)
    sequence = build_sequence(turn, policy, model.config, own_masses(learner))
    batch = collate([sequence])
    found = learner.log_probs(batch, learner.see(batch))
    expected, _ = engine_log_probs(model, prompt, (3, R, 4), policy)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-4, rtol=0)
    found.sum().backward()
    assert all(p.grad is not None for p in learner.parameters())
