"""KV slots that keep the prompts they held, so that a repeated beginning is not run again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from la_trt.batch import Request
from la_trt.engines.base import Engine, IntArray
from la_trt.errors import MachineError
from la_trt.processor.types import Prompt

MIN_PREFIX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """The prompt whose KV a free slot still holds."""

    input_ids: IntArray
    visual_row: IntArray
    position_ids: IntArray
    image_digests: tuple[bytes, ...]
    image_starts: IntArray


class PrefixSlots:
    """Slots of full length that stay with the engine once a sequence has finished.

    A new prompt takes the free slot with the longest common beginning (same tokens, same
    positions, same images), if it is at least `MIN_PREFIX` tokens, and goes on behind it; else
    an empty slot, else the one that was free the longest. A sequence that was aborted gives
    its memory back at once. Used by the one thread that runs the batch.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self.num_queried = 0  # prompt tokens
        self.num_reused = 0

    def acquire(self, request: Request, capacity: int) -> tuple[int, int]:
        """A slot, and how many tokens of the prompt it holds. Raises MachineError."""
        new = _keep(request)
        self.num_queried += len(new.input_ids)
        slot, length = self._longest(new)
        if length < MIN_PREFIX:
            slot, length = self._empty(), 0
        self._kept.pop(slot, None)
        self._engine.truncate(slot, length)
        self.num_reused += length
        return slot, length

    def release(self, slot: int, request: Request, *, finished: bool) -> None:
        """Keep a finished sequence's prompt; give an aborted one's slot back."""
        if finished:
            self._engine.truncate(slot, len(request.prompt.input_ids))
            self._kept[slot] = _keep(request)
        else:
            self._engine.free(slot)

    def clear(self) -> None:
        """Give every kept slot back."""
        while self._kept:
            self._engine.free(self._kept.popitem()[0])

    def _longest(self, new: _Kept) -> tuple[int, int]:
        best = (-1, 0)
        for slot, kept in self._kept.items():
            if (length := _common(kept, new)) > best[1]:
                best = (slot, length)
        return best

    def _empty(self) -> int:
        try:
            return self._engine.alloc(self._engine.limits.max_len)
        except MachineError:
            if not self._kept:
                raise
            return next(iter(self._kept))


def _keep(request: Request) -> _Kept:
    prompt = request.prompt
    return _Kept(
        input_ids=prompt.input_ids,
        visual_row=prompt.visual_row,
        position_ids=prompt.position_ids,
        image_digests=request.image_digests,
        image_starts=_image_starts(prompt),
    )


def _image_starts(prompt: Prompt) -> IntArray:
    """The prompt's index of each image's first visual token."""
    where = np.flatnonzero(prompt.visual_row >= 0)
    if not len(where):
        return np.zeros(0, np.int64)
    first_rows = np.cumsum([0, *(prompt.image_grid_thw.prod(axis=1))[:-1]])
    merge = prompt.image_grid_thw.prod(axis=1).sum() // len(where)
    starts: IntArray = where[first_rows // merge].astype(np.int64)
    return starts


def _common(kept: _Kept, new: _Kept) -> int:
    """Tokens of the common beginning, at most all but the last of the new prompt."""
    size = min(len(kept.input_ids), len(new.input_ids) - 1)
    same = (
        (kept.input_ids[:size] == new.input_ids[:size])
        & (kept.visual_row[:size] == new.visual_row[:size])
        & (kept.position_ids[:, :size] == new.position_ids[:, :size]).all(axis=0)
    )
    length = size if same.all() else int(same.argmin())
    starts = zip(kept.image_starts, kept.image_digests, new.image_digests, strict=False)
    for start, ours, theirs in starts:
        if start < length and ours != theirs:
            return int(start)
    return length
