"""How selected visual tokens enter the context: packed copies (`embed`) or cached K, V (`kv`).

docs/architecture.md, Looking again: copies of an image take (p, p + row, p + col), p one more
than the largest position so far; text goes on at p + max(rows, cols) of the image; the next image
follows. An image none of whose tokens is selected takes no positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from la_trt.engines.base import VisualKeys
from la_trt.processor.mrope import injection_positions_all
from la_trt.processor.types import Prompt

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """New tokens of one sequence, not yet forwarded.

    `input_ids` (T,), `visual_row` (T,) with -1 for text, `position_ids` (3, T).
    """

    input_ids: IntArray
    visual_row: IntArray
    position_ids: IntArray

    def __len__(self) -> int:
        return len(self.input_ids)

    def split(self, size: int) -> tuple[Chunk, Chunk]:
        """The first `size` tokens, and the rest."""
        return self._slice(slice(size)), self._slice(slice(size, None))

    def _slice(self, part: slice) -> Chunk:
        return Chunk(
            input_ids=self.input_ids[part],
            visual_row=self.visual_row[part],
            position_ids=self.position_ids[:, part],
        )


def prompt_chunk(prompt: Prompt) -> Chunk:
    """The whole prompt as one chunk."""
    return Chunk(
        input_ids=prompt.input_ids,
        visual_row=prompt.visual_row,
        position_ids=prompt.position_ids,
    )


def text_chunk(token_id: int, position: int) -> Chunk:
    """One text token at `position` on all three axes."""
    return Chunk(
        input_ids=np.array([token_id], np.int64),
        visual_row=np.array([-1], np.int64),
        position_ids=np.full((3, 1), position, np.int64),
    )


def join(first: Chunk, second: Chunk) -> Chunk:
    """Two chunks, one after the other."""
    return Chunk(
        input_ids=np.concatenate([first.input_ids, second.input_ids]),
        visual_row=np.concatenate([first.visual_row, second.visual_row]),
        position_ids=np.concatenate([first.position_ids, second.position_ids], axis=1),
    )


class VisualLayout:
    """Where the visual tokens of one sequence stand in its KV slot, copies included."""

    def __init__(self, prompt: Prompt) -> None:
        self.num_visual = prompt.num_visual
        self._kv_index = np.flatnonzero(prompt.visual_row >= 0).astype(np.int64)
        self._source = prompt.visual_row[self._kv_index]
        self.original_kv = np.empty(self.num_visual, np.int64)
        self.original_kv[self._source] = self._kv_index

    def append(self, kv_start: int, source: IntArray) -> None:
        """Note copies of `source` (N,) that take the KV positions from `kv_start` on."""
        indices = np.arange(kv_start, kv_start + len(source), dtype=np.int64)
        self._kv_index = np.concatenate([self._kv_index, indices])
        self._source = np.concatenate([self._source, source])

    def keys(self) -> VisualKeys:
        """All of them, as a step wants them."""
        return VisualKeys(kv_index=self._kv_index, source=self._source, num_visual=self.num_visual)


def embed_copies(
    prompt: Prompt, selected: IntArray, start: int, *, image_token_id: int, merge_size: int
) -> tuple[Chunk, int]:
    """The chunk of copies of `selected` from position `start` on, and the next text position."""
    positions, following = injection_positions_all(
        prompt.image_grid_thw, merge_size, start, selected
    )
    chunk = Chunk(
        input_ids=np.full(len(selected), image_token_id, np.int64),
        visual_row=selected,
        position_ids=positions,
    )
    return chunk, following


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCopy:
    """One `kv_reinject` call: cached positions (N,) of one image, their K rotated by `delta`."""

    source_index: IntArray
    delta: int


def kv_copies(
    prompt: Prompt, layout: VisualLayout, selected: IntArray, start: int, *, merge_size: int
) -> tuple[list[KvCopy], int]:
    """One call for each image with a selected token, and the next text position.

    The copies stand where `embed` puts them, so each image moves by one `delta` of its own
    on all three axes.
    """
    positions, following = injection_positions_all(
        prompt.image_grid_thw, merge_size, start, selected
    )
    originals = layout.original_kv[selected]
    shift = positions - prompt.position_ids[:, originals]
    assert (shift == shift[0]).all(), "kv copies must shift t, h and w alike"
    edges = np.cumsum(prompt.image_grid_thw.prod(axis=1) // merge_size**2)
    image = np.searchsorted(edges, selected, side="right")
    calls = []
    for i in np.unique(image):
        inside = image == i
        delta = shift[0, inside]
        assert (delta == delta[0]).all(), "one image, one shift"
        calls.append(KvCopy(source_index=originals[inside], delta=int(delta[0])))
    return calls, following
