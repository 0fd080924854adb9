"""One update: what its loss is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from la_trt.reattention.policy import preset
from tests.model.configs import random_model
from tests.train.test_reinject import R, prompt_of
from train.actor import LiveActor
from train.presets_brpo import BrpoConfig, ObjectiveConfig, OptimConfig
from train.reinject import Turn, build_sequences
from train.rollout import RolloutConfig
from train.update import Row, Updater

CONFIG = BrpoConfig(
    rollout=RolloutConfig(questions=1, group_size=2),
    optim=OptimConfig(lr=1e-3, warmup_frac=0.0, dtype="float32"),
)


def learn_nothing_but_the_penalty(beta: float) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of two updates by answers of no advantage, away from the reference."""
    model, reference = random_model(2).requires_grad_(True), random_model(2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    prompt = prompt_of(model.config, 20)
    turns = [Turn(prompt=prompt, response_ids=np.array(ids)) for ids in ([3, R, 5], [4, 6, 7, 2])]
    sequences = build_sequences(turns, preset("text"), reflection_id=R, config=model.config)
    config = replace(CONFIG, objective=ObjectiveConfig(beta=beta))
    updater = Updater(
        config, LiveActor(model, config.optim), reference, banned=(), device="cpu", rank=0
    )
    found = []
    for step in range(2):
        rows = [
            Row(sequence=s, advantage=0.0, engine=torch.zeros(len(s.predicts))) for s in sequences
        ]
        found += updater.learn([rows], step)
    first, second = found
    return first, second


def test_the_penalty_draws_to_the_reference_by_beta() -> None:
    """Without an advantage the gradient is beta times that of the distance, and nothing else."""
    none, some, more = (learn_nothing_but_the_penalty(beta) for beta in (0.0, 0.5, 2.0))
    assert none[0]["norm"] == 0.0 and none[1]["kl"] == none[0]["kl"] > 1e-3
    assert some[0]["norm"] > 1e-3
    assert more[0]["norm"] == pytest.approx(4 * some[0]["norm"], rel=1e-4)
    assert more[0]["loss"] == pytest.approx(2 * more[0]["kl"])
    assert more[1]["kl"] < 0.99 * more[0]["kl"]
