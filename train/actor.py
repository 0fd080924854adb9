"""The weights in training, in the two ways they can lie: live in one model, or spread by FSDP2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from la_trt.model import QwenVL
from train.batch import Batch
from train.checkpointing import rng_state, set_rng_state
from train.learner import Learner
from train.parallel import from_first
from train.policy import answer_logprobs
from train.precision import MasterWeights, copy_in
from train.presets_brpo import OptimConfig
from train.trainee import OptimConfig as SpreadConfig
from train.trainee import Trainee

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Answers = tuple[Tensor, Tensor, Tensor]


class Actor(Protocol):
    """`model` is whole and holds the present weights: it draws the answers. All else is to be
    called in every process, equally often."""

    @property
    def model(self) -> QwenVL: ...

    def logprobs(self, batch: Batch, *, temperature: float, banned: Sequence[int]) -> Answers:
        """`train.policy.answer_logprobs` of the weights in training."""
        ...

    def step(self, lr: float) -> float:
        """The gradient's norm; the weights are updated unless it is not finite."""
        ...

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and generators, as process 0 saves them."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing; goes on from a `state`, which process 0 has to give, the others leave empty."""
        ...


class LiveActor:
    """The engine runs the very weights that are trained; every process holds all of them.

    About 24 bytes a parameter with the reference: float32 masters, moments and gradients.
    """

    def __init__(self, model: QwenVL, config: OptimConfig) -> None:
        self.model, self.config = model, config
        model.visual.requires_grad_(config.train_vision)
        model.set_checkpointing(config.recompute)
        self.weights = MasterWeights(
            {"model": model},
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
            muon=False,
            dtype=DTYPES[config.dtype],
        )

    def logprobs(self, batch: Batch, *, temperature: float, banned: Sequence[int]) -> Answers:
        return answer_logprobs(
            self.model,
            batch,
            temperature=temperature,
            banned=banned,
            train_vision=self.config.train_vision,
        )

    def step(self, lr: float) -> float:
        return self.weights.step(lr, max_norm=self.config.max_norm)

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights.state_dict(), "rng": rng_state()}

    def load(self, state: Mapping[str, Any]) -> None:
        state = from_first(state)
        self.weights.load_state_dict(state["weights"])
        set_rng_state(state["rng"])


class _AnswerLearner(Learner):
    """A learner whose one pass is that of `answer_logprobs`."""

    def answers(self, batch: Batch, temperature: float, banned: Sequence[int]) -> Answers:
        return answer_logprobs(
            self.vlm,
            batch,
            temperature=temperature,
            banned=banned,
            train_vision=self.train_vision,
        )


class SpreadActor:
    """Masters, moments and gradients are spread over the processes by FSDP2; each also holds one
    whole copy of the weights in the arithmetic's dtype to draw with, gathered after every update.

    The given model may lie on the CPU: FSDP2 takes it to `device` block by block.
    """

    def __init__(self, model: QwenVL, config: OptimConfig, device: str) -> None:
        self.model = copy_in(model, DTYPES[config.dtype], device).requires_grad_(False)
        self._learner = _AnswerLearner(model, train_vision=config.train_vision)
        self._trainee = Trainee(
            self._learner,
            SpreadConfig(
                lr=config.lr,
                beta1=config.beta1,
                beta2=config.beta2,
                weight_decay=config.weight_decay,
                max_norm=config.max_norm,
                dtype=config.dtype,
                train_vision=config.train_vision,
                only_tag_rows=False,
                recompute=config.recompute,
            ),
            device=device,
        )
        register_fsdp_forward_method(self._learner, "answers")

    def logprobs(self, batch: Batch, *, temperature: float, banned: Sequence[int]) -> Answers:
        return self._learner.answers(batch, temperature, banned)

    def step(self, lr: float) -> float:
        norm = self._trainee.step(lr)
        self._gather()
        return norm

    @torch.no_grad()
    def _gather(self) -> None:
        whole = dict(self.model.named_parameters())
        for name, value in self._learner.named_parameters():
            if value.requires_grad:
                full = value.full_tensor() if isinstance(value, DTensor) else value
                whole[name.removeprefix("vlm.")].copy_(full)

    def state(self) -> dict[str, Any]:
        return self._trainee.state()

    def load(self, state: Mapping[str, Any]) -> None:
        self._trainee.load(state)
        self._gather()


def make_actor(model: QwenVL, config: OptimConfig, device: str) -> Actor:
    """The actor that `config.shard` asks for; `model` is in float32 and becomes part of it."""
    return SpreadActor(model, config, device) if config.shard else LiveActor(model, config)
