"""Sequences to train on, and right-padded batches of them as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from la_trt.model import KvCopies
from la_trt.processor.types import Prompt
from train.sequences import IGNORE

__all__ = ["IGNORE", "Batch", "TrainingSequence", "collate", "pieces"]

IntArray = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSequence:
    """S tokens that have a forward pass, and N copies of kind `kv`, which have none.

    `input_ids` (S,), `visual_row` (S,) with -1 for text, `position_ids` (3, S); `targets` (S,):
    the id to predict at each place, or IGNORE. `predicts` (R,): the place whose output predicts
    each response token. `copy_source`, `copy_delta`, `copy_visible_from` (N,): see `KvCopies`.
    """

    prompt: Prompt
    input_ids: IntArray
    visual_row: IntArray
    position_ids: IntArray
    targets: IntArray
    predicts: IntArray
    copy_source: IntArray
    copy_delta: IntArray
    copy_visible_from: IntArray

    def __len__(self) -> int:
        """KV positions that it takes, copies included."""
        return len(self.input_ids) + len(self.copy_source)

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORE).sum())

    def visual_keys(self, length: int) -> tuple[IntArray, IntArray]:
        """Indices of all keys of visual tokens, and their sources (K,), in a batch padded to
        `length`: places in the sequence, then `length` + n for the n-th copy of kind `kv`."""
        places = np.flatnonzero(self.visual_row >= 0).astype(np.int64)
        copies = length + np.arange(len(self.copy_source), dtype=np.int64)
        rows = self.visual_row
        return np.concatenate([places, copies]), np.concatenate(
            [rows[places], rows[self.copy_source]]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B sequences padded to S. Rows of `visual_row_BS` count within all images of the batch:
    `pixel_values_PD` and `image_grid_thw_N3`. `counts`: targets of each sequence."""

    input_ids_BS: Tensor
    visual_row_BS: Tensor
    position_ids_3BS: Tensor
    targets_BS: Tensor
    pixel_values_PD: Tensor
    image_grid_thw_N3: Tensor
    copies: KvCopies | None
    counts: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.input_ids_BS.shape[1]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        tensors = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        copies = self.copies and KvCopies(
            **{f.name: getattr(self.copies, f.name).to(device) for f in fields(KvCopies)}
        )
        return replace(self, copies=copies, **tensors)


def pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def collate(sequences: Sequence[TrainingSequence], *, pad_id: int = 0) -> Batch:
    """The batch of some sequences. Those of one and the same `Prompt` object share its images."""
    length = max(len(s.input_ids) for s in sequences)
    first_row: dict[int, int] = {}
    prompts: list[Prompt] = []
    for s in sequences:
        if id(s.prompt) not in first_row:
            first_row[id(s.prompt)] = sum(p.num_visual for p in prompts)
            prompts.append(s.prompt)
    rows = [
        np.where(s.visual_row >= 0, s.visual_row + first_row[id(s.prompt)], -1) for s in sequences
    ]
    positions = [_right(s.position_ids, length, 0) for s in sequences]
    return Batch(
        input_ids_BS=_stacked([s.input_ids for s in sequences], length, pad_id),
        visual_row_BS=_stacked(rows, length, -1),
        position_ids_3BS=torch.from_numpy(np.stack(positions, axis=1)),
        targets_BS=_stacked([s.targets for s in sequences], length, IGNORE),
        pixel_values_PD=torch.from_numpy(np.concatenate([p.pixel_values for p in prompts])),
        image_grid_thw_N3=torch.from_numpy(np.concatenate([p.image_grid_thw for p in prompts])),
        copies=_copies(sequences, length),
        counts=tuple(s.num_targets for s in sequences),
    )


def _copies(sequences: Sequence[TrainingSequence], length: int) -> KvCopies | None:
    most = max(len(s.copy_source) for s in sequences)
    if not most:
        return None
    return KvCopies(
        source_index_BN=_stacked([s.copy_source for s in sequences], most, 0),
        delta_BN=_stacked([s.copy_delta for s in sequences], most, 0),
        visible_from_BN=_stacked([s.copy_visible_from for s in sequences], most, length),
    )


def _right(array: IntArray, length: int, fill: int) -> IntArray:
    width = [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])]
    return np.pad(array, width, constant_values=fill)


def _stacked(arrays: Sequence[IntArray], length: int, fill: int) -> Tensor:
    return torch.from_numpy(np.stack([_right(a, length, fill) for a in arrays]))
