"""Copies of a model in another dtype: equal to converted ones, and never a second model in float32.

`Float32` counts what the CPU holds; a GPU holds no more, since the same calls are made there.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.model.configs import random_model
from tests.tiny import write_tiny_checkpoint
from tests.train.test_brpo import TRIAL
from train.brpo import Trainer
from train.precision import copy_in
from train.presets_brpo import ObjectiveConfig


class Float32(TorchDispatchMode):
    """Bytes of float32 made within it: `now` alive, `peak` the most at once. `but` not counted."""

    def __init__(self, but: nn.Module | None = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        own = [] if but is None else [*but.parameters(), *but.buffers()]
        self.known = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if type(leaf) is torch.Tensor and leaf.dtype == torch.float32 and not leaf.is_meta:
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        weakref.finalize(storage, self._free, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def num_bytes(module: nn.Module) -> int:
    return sum(4 * tensor.numel() for tensor in module.parameters())


def test_no_second_model_in_float32_is_made_on_the_way() -> None:
    model = random_model(2)
    with Float32(model) as before:
        expected = copy.deepcopy(model).to(torch.bfloat16)
    assert before.peak >= num_bytes(model)
    assert before.now == 0, "what is freed is not counted"
    with Float32(model) as found:
        ours = copy_in(model, torch.bfloat16)
    assert found.peak == 0
    assert ours.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
        assert ours.state_dict()[name].dtype == torch.bfloat16
    assert ours.config == model.config and ours.training == model.training


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("scratch", torch.arange(4.0), persistent=False)
        self.embed.weight.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_buffers_and_what_is_frozen_stay(dtype: torch.dtype) -> None:
    model = Tied()
    ours = copy_in(model, dtype)
    assert ours.head.weight is ours.embed.weight
    assert not ours.embed.weight.requires_grad and ours.norm.weight.requires_grad
    assert isinstance(ours.embed.weight, nn.Parameter)
    assert ours.norm.num_batches_tracked.dtype == torch.int64
    expected = copy.deepcopy(model).to(dtype)
    for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
        found = dict(kind(ours))
        for name, value in kind(expected):
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    with torch.no_grad():
        for tensor in (*ours.parameters(), *ours.buffers()):
            tensor.add_(1)
    fresh = dict(model.named_parameters())
    assert all(not torch.equal(fresh[n], v.float()) for n, v in ours.named_parameters())
    assert model.scratch.tolist() == [0, 1, 2, 3], "the copy shares nothing with the model"


def test_a_sharded_run_starts_with_one_model_in_float32(tmp_path: Path) -> None:
    ckpt = write_tiny_checkpoint(tmp_path / "ckpt")
    config = replace(
        TRIAL,
        objective=ObjectiveConfig(beta=0.1),
        optim=replace(TRIAL.optim, dtype="bfloat16", shard=True),
    )
    with Float32() as found:
        trainer = Trainer(config, ckpt, tmp_path / "run")
    assert trainer.reference is not None
    size = num_bytes(trainer.reference)
    blocks = (*trainer.reference.model.layers, *trainer.reference.visual.blocks)
    apart = size - sum(map(num_bytes, blocks))
    # FSDP holds what it spreads twice: block after block, then all that is in none
    assert found.now == size and found.peak <= size + apart < 2 * size
    for model in (trainer.reference, trainer.actor.model):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
