"""A learner spread over the processes by FSDP2, its optimizer, and the whole state of both.

One process is a mesh of one: the same code runs alone and under `torchrun`. Parameters are
float32 masters; with dtype bfloat16 every block computes with bfloat16 copies of them, and
gradients are summed over the processes in float32.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from train.checkpointing import rng_state, set_rng_state
from train.learner import Learner
from train.parallel import join, join_alone
from train.ranges import DECAY, POSITIVE, SHARE, at_least, check

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW. `warmup_frac` of the steps the rate rises, over the last `decay_frac` it falls to 0.

    `max_norm` clips the gradient of all weights together. Without `train_vision` vision tower and
    merger stay as they are. `only_tag_rows`: of embedding and head only the rows of the added
    tokens change. `recompute`: activations in the backward pass, to save memory.
    """

    lr: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_frac: float = 0.01
    decay_frac: float = 0.0
    max_norm: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    train_vision: bool = False
    only_tag_rows: bool = True
    recompute: bool = False

    def __post_init__(self) -> None:
        check(
            self,
            lr=at_least(0),
            beta1=DECAY,
            beta2=DECAY,
            eps=at_least(0),
            weight_decay=at_least(0),
            warmup_frac=SHARE,
            decay_frac=SHARE,
            max_norm=POSITIVE,
        )


class Trainee:
    """A sharded learner and its optimizer. Every method is to be called in all processes.

    The parameters of `learner` must be float32; they are sharded in place. From the CPU they
    come to `device` block by block, so that the whole never lies there.
    """

    def __init__(self, learner: Learner, config: OptimConfig, *, device: str = "cpu") -> None:
        self.rank, self.world = join()
        if self.world == 1:
            join_alone()
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        self.learner, self.config = learner, config
        learner.vlm.set_checkpointing(config.recompute)
        mesh = init_device_mesh(torch.device(device).type, (self.world,))
        half = torch.bfloat16 if config.dtype == "bfloat16" else None
        # Cosines, sines and pixels keep their own dtype; the blocks cast where they must.
        precision = MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in (*learner.vlm.model.layers, *learner.vlm.visual.blocks):
            fully_shard(block, mesh=mesh, mp_policy=precision)
        fully_shard(learner, mesh=mesh, mp_policy=precision)
        for method in ("see", "masses", "log_probs"):
            register_fsdp_forward_method(learner, method)
        self.parameters = [p for p in learner.parameters() if p.requires_grad]
        self._masks = [_row_mask(w, learner.rows or ()) for w in learner.row_weights()]
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps
        )

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices decay; norms, biases, and weights of which only rows are trained do not."""
        rows = {id(w) for w in self.learner.row_weights()}
        decays = [p.dim() > 1 and id(p) not in rows for p in self.parameters]
        groups = []
        for chosen, decay in ((True, self.config.weight_decay), (False, 0.0)):
            own = [p for p, d in zip(self.parameters, decays, strict=True) if d is chosen]
            if own:
                groups.append({"params": own, "weight_decay": decay})
        return groups

    def step(self, lr: float) -> float:
        """The gradient's norm before clipping; weights are updated, gradients cleared.

        A step whose gradient is not finite is left out.
        """
        for weight, mask in zip(self.learner.row_weights(), self._masks, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(mask)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_norm)
        value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if math.isfinite(value):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def total(self, value: float) -> float:
        """The sum of the processes' values."""
        found = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(found)
        return float(found)

    def gathered(self, value: object) -> list[Any]:
        """The plain values of all processes, in order, in each of them."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def model_state(self) -> dict[str, Tensor]:
        """All parameters, whole, by their released names, on the CPU; empty but in process 0."""
        state: dict[str, Any] = get_model_state_dict(self.learner, options=_FULL)
        return {name.removeprefix("vlm."): value for name, value in state.items()}

    def state(self) -> dict[str, Any]:
        """Model, optimizer and the generators of every process; whole tensors, in process 0."""
        return {
            "model": get_model_state_dict(self.learner, options=_FULL),
            "optimizer": get_optimizer_state_dict(self.learner, self.optimizer, options=_FULL),
            "rng": self.gathered(rng_state()),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing; goes on from a `state`, which process 0 has to give, the others may leave
        empty. Another number of processes may go on; the first ones keep their generators."""
        set_model_state_dict(self.learner, state.get("model", {}), options=_SPREAD)
        set_optimizer_state_dict(
            self.learner, self.optimizer, state.get("optimizer", {}), options=_SPREAD
        )
        generators = [state.get("rng", [])]
        dist.broadcast_object_list(generators, src=0)
        if self.rank < len(generators[0]):
            set_rng_state(generators[0][self.rank])


def _row_mask(weight: Tensor, rows: tuple[int, ...]) -> Tensor:
    """(V, 1): 1 at the rows that are trained, sharded as the weight is."""
    mask = torch.zeros((weight.shape[0], 1), device=weight.device)
    mask[list(rows)] = 1
    if not isinstance(weight, DTensor):
        return mask
    return distribute_tensor(mask, weight.device_mesh, weight.placements, src_data_rank=None)
