"""Muon for many small matrices: those of one shape are orthogonalised together, as a batch.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the update's size as in Liu et al.
2025 (arXiv 2502.16982), so that AdamW's learning rate and weight decay carry over. In bfloat16
the same numbers as `torch.optim.Muon`, in a tenth of the calls.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_STEPS = 5


def orthogonalise(update_NAB: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest orthogonal matrix, about, to each of N matrices: Newton-Schulz in `dtype`."""
    a, b, c = _COEFFICIENTS
    x = update_NAB.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


class StackedMuon:
    """Muon over stacks (N, A, B) of matrices; `gradients` are to be filled before each step."""

    def __init__(
        self,
        stacks: list[Tensor],
        *,
        weight_decay: float,
        dtype: torch.dtype,
        momentum: float = 0.95,
    ) -> None:
        self.stacks, self.weight_decay, self.momentum = stacks, weight_decay, momentum
        self.dtype = dtype
        self.gradients = [torch.zeros_like(stack) for stack in stacks]
        self.buffers = [torch.zeros_like(stack) for stack in stacks]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Nothing; the matrices are updated in place."""
        for stack, gradient, buffer in zip(self.stacks, self.gradients, self.buffers, strict=True):
            if not gradient.any():  # frozen; a stale momentum must not move it
                continue
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum), self.dtype)
            scale = 0.2 * max(stack.shape[1:]) ** 0.5
            stack.mul_(1 - lr * self.weight_decay).add_(update, alpha=-lr * scale)
