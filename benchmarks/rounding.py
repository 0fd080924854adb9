"""Activations rounded in torch as the native engine rounds those that meet codes."""

from __future__ import annotations

import torch

from la_trt.model.vlm import QwenVL

LARGEST = {"int8": 127, "int4": 120}  # code of an activation, by the weights that it meets


def round_groups(x: torch.Tensor, largest: int, group: int) -> torch.Tensor:
    """max|x| / `largest` of every `group` numbers of a row, times the nearest code."""
    width = x.shape[-1]
    groups = torch.nn.functional.pad(x, (0, -width % group)).unflatten(-1, (-1, group))
    scale = groups.abs().amax(-1, keepdim=True) / largest
    codes = torch.where(scale > 0, groups / scale, 0.0).round()
    return (codes * scale).flatten(-2)[..., :width]


def round_inputs(model: QwenVL, *, decoder: int, tower: int | None, group: int) -> None:
    """Rounds what every linear layer of `model` gets from here on, the head included.

    `decoder`, `tower`: the largest code of either, None: not rounded. `group`: activations that
    share a scale.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or module is model.visual.patch_embed:
            largest = tower if name.startswith("visual.") else decoder
            if largest is None:
                continue
            module.register_forward_pre_hook(
                lambda _, args, largest=largest: (round_groups(args[0], largest, group),)
            )
    norm = model.model.norm  # before the head
    norm.register_forward_hook(lambda _, args, out: round_groups(out, decoder, group))
