"""Milliseconds of the GPU by stage, from events in the stream; the host never waits for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from la_trt.engines.cuda import Device

_PAIRS = 32  # stages between two waits before the host has to


@dataclass(slots=True)
class StageTime:
    """How often a stage ran, and the GPU's time for it."""

    num_runs: int = 0
    total_ms: float = 0.0


class StageTimer:
    """Events before and after each stage's work; `collect` after a wait reads them."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._events = [(device.event(), device.event()) for _ in range(_PAIRS)]
        self._pending: list[str] = []
        self.stages: dict[str, StageTime] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what the block puts into the stream. Not to be used while a graph is recorded."""
        if len(self._pending) == _PAIRS:
            self._device.synchronize()
            self.collect()
        before, after = self._events[len(self._pending)]
        self._device.record(before)
        yield
        self._device.record(after)
        self._pending.append(name)

    def collect(self) -> None:
        """Add up the stages that are done; the stream must be empty."""
        for name, (before, after) in zip(self._pending, self._events, strict=False):
            stage = self.stages.setdefault(name, StageTime())
            stage.num_runs += 1
            stage.total_ms += self._device.elapsed_ms(before, after)
        self._pending.clear()
