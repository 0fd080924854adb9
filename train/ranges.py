"""Which values the settings of the training commands may have."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from typing import Any

import torch

from la_trt.errors import MachineError, UsageError

Range = tuple[str, Callable[[Any], bool]]


def at_least(low: int) -> Range:
    """A finite number from `low` on."""
    return f"at least {low}", lambda value: low <= value < inf


SHARE: Range = ("0 to 1", lambda value: 0 <= value <= 1)
DECAY: Range = ("0 to below 1", lambda value: 0 <= value < 1)
POSITIVE: Range = ("a number above 0", lambda value: value > 0)
CLIP: Range = ("at least 0", lambda value: value >= 0)  # inf: no clipping
FINITE: Range = ("a finite number", isfinite)
SEED: Range = ("0 to 2**32 - 1", lambda value: 0 <= value < 1 << 32)


def check(config: Any, **ranges: Range) -> None:
    """Raise UsageError unless every field named lies in its range.

    None says that a field is not set, and is always right; nan lies in no range.
    """
    for name, (expected, holds) in ranges.items():
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise UsageError(f"{name}: expected {expected}, got {value}")


def check_device(device: str) -> None:
    """Raise UsageError for what is no device's name, MachineError for one that is not here."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UsageError(
            f"--device: expected a name of PyTorch's such as cpu or cuda, got {device!r}"
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            f"--device {device}: PyTorch finds no such device here\nuse --device cpu",
            name="E_DEVICE",
        )
