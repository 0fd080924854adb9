"""What engines share that run rows of KV slots: a packed step becomes batches of rows.

One-token sequences of neighbouring slots run together, longer ones one after another in chunks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from la_trt.config import ModelConfig
from la_trt.engines.base import (
    Draw,
    Drawn,
    EngineLimits,
    FloatArray,
    IntArray,
    Step,
    StepOutput,
    VisualKeys,
    check_step,
)
from la_trt.engines.rope import mrope_tables
from la_trt.engines.slots import SlotTable
from la_trt.errors import UsageError

_IDLE_ROWS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBatch:
    """One run: the KV slots first_slot ... first_slot + B - 1, S tokens each.

    `input_ids`, `visual_row` (B, S); `cos`, `sin` (B, S, D / 2); `past` (B,) KV positions before
    the run and `query` (B,) = S, both 0 for an idle row; `visual_index` (B, N); `logits_row`
    (R,) of the flattened tokens; `visual_embeds` (M, E) or None; `draws` for each row of logits, or
    empty.
    """

    first_slot: int
    input_ids: IntArray
    visual_row: IntArray
    cos: FloatArray
    sin: FloatArray
    past: IntArray
    query: IntArray
    visual_index: IntArray
    logits_row: IntArray
    visual_embeds: FloatArray | None = None
    draws: tuple[Draw | None, ...] = ()


class RowOutput(NamedTuple):
    """`logits` (R, V), rows unspecified where a token was drawn; `mass` (B, N); `drawn` for each
    row of logits, or empty. Both arrays belong to the runner until the next run.
    """

    logits: FloatArray
    mass: FloatArray
    drawn: tuple[Drawn | None, ...] = ()


class Runner(Protocol):
    """Runs the decoder over rows of its KV buffers."""

    def run(self, rows: RowBatch) -> RowOutput: ...


class RowEngine(ABC):
    """An `Engine` over a `Runner`. Subclasses say how long chunks are, and move cached keys."""

    _config: ModelConfig
    _limits: EngineLimits
    _slots: SlotTable
    _decoder: Runner
    _mass: bool = True

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    @abstractmethod
    def _chunk(self, total: int) -> int:
        """Tokens of one prefill run of a sequence that will have `total`."""

    def forward(self, step: Step) -> StepOutput:
        """Logits and mass of each sequence's last token.

        One-token sequences run together; longer ones one after another, in chunks.
        """
        lengths = [self.length(slot) for slot in step.slots]
        check_step(step, lengths, self._slots.capacities(step.slots))
        if not self._mass and any(keys is not None for keys in step.visual_keys):
            raise UsageError("the engine was opened without mass\nopen it with mass=True")
        cos, sin = mrope_tables(step.position_ids, self._config.text)
        run = _StepRun(
            step=step,
            keys=step.visual_keys or (None,) * len(step.slots),
            cos=cos,
            sin=sin,
            past=np.array(lengths, np.int64),
            logits=np.empty((len(step.slots), self._config.text.vocab_size), np.float32),
            masses=[None] * len(step.slots),
            drawn=[None] * len(step.slots),
        )
        counts = np.diff(step.cu_seqlens)
        for group in _neighbours(np.flatnonzero(counts == 1).tolist(), step.slots):
            self._run_single(run, group)
        for b in np.flatnonzero(counts > 1):
            self._run_long(run, int(b))
        for slot, count in zip(step.slots, counts, strict=True):
            self._slots.grow(slot, int(count))
        return StepOutput(
            logits=run.logits,
            visual_mass=tuple(run.masses) if step.visual_keys else (),
            drawn=tuple(run.drawn) if step.draws else (),
        )

    def _run_single(self, run: _StepRun, group: list[int]) -> None:
        """One token of each sequence of `group`; slots between theirs are idle rows."""
        step = run.step
        slots = np.array([step.slots[b] for b in group])
        tokens = step.cu_seqlens[group]
        first, batch = int(slots.min()), int(slots.max() - slots.min()) + 1
        row = slots - first
        widest = max(0 if (k := run.keys[b]) is None else len(k.kv_index) for b in group)
        visual_row, visual_embeds = run.visual(tokens)
        rows = RowBatch(
            first_slot=first,
            input_ids=np.zeros((batch, 1), np.int64),
            visual_row=np.full((batch, 1), -1, np.int64),
            cos=np.zeros((batch, 1, run.cos.shape[1]), np.float32),
            sin=np.zeros((batch, 1, run.cos.shape[1]), np.float32),
            past=np.zeros(batch, np.int64),
            query=np.zeros(batch, np.int64),
            visual_index=np.zeros((batch, widest), np.int64),
            logits_row=row,
            visual_embeds=visual_embeds,
            draws=run.draws(group),
        )
        rows.input_ids[row, 0] = step.input_ids[tokens]
        rows.visual_row[row, 0] = visual_row
        rows.cos[row, 0], rows.sin[row, 0] = run.cos[tokens], run.sin[tokens]
        rows.past[row], rows.query[row] = run.past[group], 1
        for b, i in zip(group, row, strict=True):
            if (keys := run.keys[b]) is not None:
                rows.visual_index[i, : len(keys.kv_index)] = keys.kv_index
        output = self._decoder.run(rows)
        for n, (b, i) in enumerate(zip(group, row, strict=True)):
            run.store(b, output, n, int(i))

    def _run_long(self, run: _StepRun, b: int) -> None:
        """All tokens of sequence `b`, chunk after chunk; only the last token meets the head."""
        step = run.step
        start, stop = int(step.cu_seqlens[b]), int(step.cu_seqlens[b + 1])
        slot, keys = step.slots[b], run.keys[b]
        past = int(run.past[b])
        for low in range(start, stop, size := self._chunk(past + stop - start)):
            high = min(stop, low + size)
            last = high == stop
            visual_row, visual_embeds = run.visual(np.arange(low, high))
            rows = RowBatch(
                first_slot=slot,
                input_ids=step.input_ids[None, low:high],
                visual_row=visual_row[None],
                cos=run.cos[None, low:high],
                sin=run.sin[None, low:high],
                past=np.array([past + low - start], np.int64),
                query=np.array([high - low], np.int64),
                visual_index=(
                    keys.kv_index[None] if last and keys is not None else np.zeros((1, 0), np.int64)
                ),
                logits_row=np.arange(high - low)[-1:] if last else np.zeros(0, np.int64),
                visual_embeds=visual_embeds,
                draws=run.draws([b]) if last else (),
            )
            output = self._decoder.run(rows)
            if last:
                run.store(b, output, 0, 0)

    def alloc(self, capacity: int) -> int:
        """The lowest free slot. Raises MachineError (E_KV_CAPACITY, E_NO_SLOT)."""
        slot = self._slots.lowest_free(capacity)
        self._slots.take(slot, capacity)
        return slot

    def free(self, slot: int) -> None:
        """Give the slot back."""
        self._slots.release(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget every KV position from `length` on."""
        self._slots.truncate(slot, length)

    def length(self, slot: int) -> int:
        """KV positions in use."""
        return self._slots.length(slot)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepRun:
    """A step with what its runs share, and where their results go."""

    step: Step
    keys: tuple[VisualKeys | None, ...]
    cos: FloatArray
    sin: FloatArray
    past: IntArray
    logits: FloatArray
    masses: list[FloatArray | None]
    drawn: list[Drawn | None]

    def draws(self, sequences: Sequence[int]) -> tuple[Draw | None, ...]:
        """The draws of these sequences; none at all where no step asks for any."""
        if not self.step.draws:
            return ()
        return tuple(self.step.draws[b] for b in sequences)

    def visual(self, tokens: IntArray) -> tuple[IntArray, FloatArray | None]:
        """(row (T,), embeds (M, E)) of `tokens`: the visual embeddings that they take, not all of
        the step's, which may be more than a run has room for; -1 and None where they take none.
        """
        rows, table = self.step.visual_row, self.step.visual_embeds
        wanted = np.full(len(tokens), -1, np.int64) if rows is None else rows[tokens]
        if table is None or wanted.max() < 0:
            return wanted, None
        taken, place = np.unique(wanted[wanted >= 0], return_inverse=True)
        own = np.full(len(tokens), -1, np.int64)
        own[wanted >= 0] = place
        return own, table[taken]

    def store(self, b: int, output: RowOutput, n: int, i: int) -> None:
        """Keep the results of sequence `b`, row `n` of the logits and row `i` of the run; what a
        copy got counts for its source.
        """
        self.drawn[b] = output.drawn[n] if output.drawn else None
        if self.drawn[b] is None:
            self.logits[b] = output.logits[n]
        keys = self.keys[b]
        if keys is None:
            return
        got = output.mass[i, : len(keys.kv_index)]
        mass = np.bincount(keys.source, weights=got, minlength=keys.num_visual)
        self.masses[b] = mass.astype(np.float32)


def _neighbours(sequences: list[int], slots: Sequence[int]) -> list[list[int]]:
    """Sequences in groups whose slots lie close together."""
    groups: list[list[int]] = []
    for b in sorted(sequences, key=lambda b: slots[b]):
        if groups and slots[b] - slots[groups[-1][-1]] - 1 <= _IDLE_ROWS:
            groups[-1].append(b)
        else:
            groups.append([b])
    return groups
