"""float32 master weights of modules that compute in bfloat16, where the processor is fast at it."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from train.muon import StackedMuon
from train.parallel import mean_over_processes

_M = TypeVar("_M", bound=nn.Module)
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def keep_heap() -> None:
    """Nothing; restarts the program once with an allocator that keeps freed memory.

    By default glibc gives every large buffer back to the kernel, whose fresh zeroed pages then
    cost nearly as much as the arithmetic. Only the environment of a new process can change it.
    """
    if all(os.environ.get(name) for name in _ALLOCATOR):
        return
    os.environ.update(_ALLOCATOR)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def fast_dtype() -> torch.dtype:
    """bfloat16 where PyTorch has matrix products of it for this CPU (AVX-512), else float32.

    Elsewhere PyTorch emulates them, 8 to 120 times slower than float32.
    """
    mkldnn = torch.backends.mkldnn.is_available()
    supported = mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if supported else torch.float32


def slowness_note(dtype: str, device: str) -> str:
    """What to tell who asked for a dtype that this device emulates; "" if it does not."""
    if dtype != "bfloat16" or device != "cpu" or fast_dtype() is torch.bfloat16:
        return ""
    return "note: this processor emulates bfloat16; --dtype float32 trains many times faster"


@contextmanager
def fast_attention() -> Iterator[None]:
    """Attention as plain matrix products; in bfloat16 on a CPU it trains faster than fused."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def copy_in(module: _M, dtype: torch.dtype, device: str | torch.device | None = None) -> _M:
    """A copy whose floating-point tensors are in `dtype`, on `device` (None: where they are).

    As `copy.deepcopy(module).to(device, dtype)`, but each tensor is converted as it is copied:
    besides the result never more than one is held. Shared tensors stay shared; no gradients.
    """
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        own = tensor.detach().to(device=device or tensor.device, dtype=kind, copy=True)
        if isinstance(tensor, nn.Parameter):
            own = nn.Parameter(own, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = own
    return copy.deepcopy(module, memo)


class MasterWeights:
    """float32 parameters of modules that compute in `dtype`, and their optimizers.

    Matrices inside blocks go to Muon, all else (embeddings, biases, norms, heads) to AdamW; both
    use one learning rate. Matrices of one shape are kept in one stack; small updates are few
    and large, which matters where other programs share the cores.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        *,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.98),
        muon: bool = True,
        dtype: torch.dtype,
    ) -> None:
        self._live: dict[str, nn.Parameter] = {}
        for prefix, module in modules.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    self._live[f"{prefix}.{name}"] = parameter
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for name, parameter in self._live.items():
            if muon and _is_matrix(name, parameter):
                by_shape.setdefault(tuple(parameter.shape), []).append(name)
        self._stacked = list(by_shape.values())
        stacks = [torch.stack([self._live[n].detach().float() for n in g]) for g in self._stacked]
        plain = [n for n in self._live if n not in {m for g in self._stacked for m in g}]
        decayed = [n for n in plain if self._live[n].dim() > 1]
        rest = [n for n in plain if self._live[n].dim() <= 1]
        self._flat = [names for names in (decayed, rest) if names]
        flats = [
            torch.cat([self._live[n].detach().float().flatten() for n in names])
            for names in self._flat
        ]
        self._tensors = [*stacks, *flats]
        self._averages = [value.clone() for value in self._tensors]
        self.masters = self._named(self._tensors)
        self.average = self._named(self._averages)
        self.muon = StackedMuon(stacks, weight_decay=weight_decay, dtype=dtype)
        groups = [
            {"params": [flat], "weight_decay": weight_decay if names is decayed else 0.0}
            for flat, names in zip(flats, self._flat, strict=True)
        ]
        self.adamw = torch.optim.AdamW(groups, betas=betas, eps=1e-8, fused=True)
        for flat in flats:
            flat.grad = torch.zeros_like(flat)
        gradients = [*self.muon.gradients, *(f.grad for f in flats if f.grad is not None)]
        self._gradients, self._grad_of = gradients, self._named(gradients)
        for module in modules.values():
            module.to(dtype)

    def _named(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """Views of each parameter in the stacks and flat vectors."""
        views: dict[str, Tensor] = {}
        for names, tensor in zip([*self._stacked, *self._flat], tensors, strict=True):
            at = 0
            for i, name in enumerate(names):
                shape, count = self._live[name].shape, self._live[name].numel()
                views[name] = (
                    tensor[i] if tensor.dim() == 3 else tensor[at : at + count].view(shape)
                )
                at += count
        return {name: views[name] for name in self._live}

    @torch.no_grad()
    def step(self, lr: float, *, max_norm: float = 1.0, average_decay: float = 0.0) -> float:
        """The gradient's norm before clipping; weights are updated, gradients cleared.

        A step whose gradient is not finite is left out.
        """
        for name, live in self._live.items():
            if live.grad is None:
                self._grad_of[name].zero_()
            else:
                self._grad_of[name].copy_(live.grad)
            live.grad = None
        mean_over_processes(self._gradients)
        norm = float(torch.stack([g.square().sum() for g in self._gradients]).sum().sqrt())
        if not math.isfinite(norm):
            return norm
        for gradient in self._gradients:
            gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.muon.step(lr)
        self.publish(self.masters)
        for average, value in zip(self._averages, self._tensors, strict=True):
            average.lerp_(value, 1 - average_decay)
        return norm

    @torch.no_grad()
    def publish(self, values: dict[str, Tensor]) -> None:
        """Nothing; copies `values` into the modules."""
        for name, live in self._live.items():
            live.copy_(values[name])

    @torch.no_grad()
    def forget_momentum(self, prefix: str) -> None:
        """Nothing; parameters whose name starts with `prefix` stay where they are (but for weight
        decay of the patch embedding) while they get no gradient.
        """
        for flat, names in zip(self._tensors[len(self._stacked) :], self._flat, strict=True):
            state = self.adamw.state.get(flat)
            at = 0
            for name in names:
                count = self._live[name].numel()
                if state and name.startswith(prefix):
                    state["exp_avg"][at : at + count] = 0
                at += count

    def state_dict(self) -> dict[str, object]:
        """Everything that `load_state_dict` needs to go on."""
        return {
            "masters": self.masters,
            "average": self.average,
            "muon": self.muon.buffers,
            "adamw": self.adamw.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing; goes on from a `state_dict` of the same modules."""
        for own, saved in ((self.masters, state["masters"]), (self.average, state["average"])):
            assert saved.keys() == own.keys(), "the state is of other modules"
            for name, value in own.items():
                value.copy_(saved[name])
        for buffer, saved in zip(self.muon.buffers, state["muon"], strict=True):
            buffer.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])
        self.publish(self.masters)


def _is_matrix(name: str, value: Tensor) -> bool:
    return value.dim() == 2 and "embed" not in name and not name.startswith("heads.")
