"""The waist of the project: what a session asks of an engine, and nothing more.

An engine holds weights and KV slots. It knows no tags, reflections, policies or chat.
Shapes: B sequences, T packed tokens, M visual tokens, E width, V vocabulary.
All arrays are numpy, C-contiguous, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from la_trt.config import ModelConfig

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualKeys:
    """Where the visual tokens of one sequence stand in its KV slot, copies included.

    `kv_index` (N,): KV positions that will be valid once this step's tokens are appended.
    `source` (N,): for each of them the source visual token, 0 <= source < num_visual; the
    mass that a copy receives counts for its source.
    """

    kv_index: IntArray
    source: IntArray
    num_visual: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A token to be drawn by the engine from a sequence's logits, so that they stay where they are.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off; the order is temperature, top-k,
    top-p, ties to the lower index. `uniform` in [0, 1) is the random number: the token at which
    the candidates' probabilities, summed by ascending index, exceed it. `banned` is never drawn,
    -1 for none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    uniform: float = 0.0
    banned: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The token, -1 where the logits are not all finite; `logprob` of it at temperature 1, before
    top-k, top-p and ban.
    """

    token: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One packed forward pass: the new tokens of B sequences, each appended to its slot.

    `input_ids` (T,) int64. Where `visual_row` (T,) int64 is >= 0 the token's embedding is
    row `visual_row` of `visual_embeds` (M, E) instead of the embedding of its id.
    `position_ids` (3, T) int64: temporal, height, width (M-RoPE).
    `cu_seqlens` (B + 1,) int64 splits T by sequence; `slots` names their KV slots, all distinct,
    but where the limits have `draft_rows`: there a slot may come again right behind itself with one
    more token, which follows the one before and has outputs of its own.
    `visual_keys`: per sequence, or None where no mass is wanted (an empty tuple: none at all).
    `draws`: per sequence the token to draw, or None where the logits are wanted (an empty tuple:
    all of them); only for an engine whose limits say `supports_draw`.
    """

    slots: tuple[int, ...]
    cu_seqlens: IntArray
    input_ids: IntArray
    position_ids: IntArray
    visual_row: IntArray | None = None
    visual_embeds: FloatArray | None = None
    visual_keys: tuple[VisualKeys | None, ...] = ()
    draws: tuple[Draw | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What a forward pass returns, for the LAST token of each sequence.

    `logits` (B, V) float32; a row is unspecified where a token was drawn. `visual_mass`: per
    sequence (num_visual,) float32, the attention probability that the sequence's last token puts
    on each source visual token, mean over layers and query heads; None where no mass was asked
    for. `drawn`: per sequence what was drawn, None where nothing was asked for.
    """

    logits: FloatArray
    visual_mass: tuple[FloatArray | None, ...] = ()
    drawn: tuple[Drawn | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What an engine can do. `max_len`: KV positions a slot may have. `supports_draw`: it answers
    `Step.draws`; others are never given any. `draft_rows`: decoding sequences and tokens guessed
    ahead that one step serves for little more than one token (0: it takes no guesses).
    """

    name: str
    device: str
    dtype: str
    max_batch: int
    max_len: int
    supports_kv_reinject: bool = True
    supports_draw: bool = False
    draft_rows: int = 0
    details: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Engine(Protocol):
    """Weights and KV slots behind six calls. Not thread-safe; one session loop drives it."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def limits(self) -> EngineLimits: ...

    def vision(self, pixel_values: FloatArray, grid_thw: IntArray) -> FloatArray:
        """Visual embeddings (M, E) of images packed in order.

        `pixel_values` (P, C * temporal_patch * patch * patch), `grid_thw` (N, 3) in patches;
        M = sum(t * h * w) / merge**2, images in order, row-major within each.
        """
        ...

    def forward(self, step: Step) -> StepOutput: ...

    def kv_reinject(self, slot: int, source_index: IntArray, delta: int) -> None:
        """Append copies of the cached K and V at `source_index` (N,), K rotated by `delta`.

        `delta` shifts t, h and w alike, so it is one plain rotation by delta * theta_i of
        every rotary pair. The slot grows by N.
        """
        ...

    def alloc(self, capacity: int) -> int:
        """A fresh, empty KV slot for `capacity` tokens. Raises MachineError when none is left."""
        ...

    def free(self, slot: int) -> None: ...

    def truncate(self, slot: int, length: int) -> None:
        """Forget every KV position from `length` on; 0 <= length <= current length."""
        ...

    def length(self, slot: int) -> int:
        """KV positions in use."""
        ...


def past_lengths(step: Step, length: Callable[[int], int]) -> list[int]:
    """KV positions before each sequence of a step, by `length` of a slot; guesses follow on."""
    past: list[int] = []
    for b, slot in enumerate(step.slots):
        again = b > 0 and slot == step.slots[b - 1]
        count = int(step.cu_seqlens[b] - step.cu_seqlens[b - 1]) if again else 0
        past.append(past[-1] + count if again else length(slot))
    return past


def check_step(
    step: Step, lengths: Sequence[int], capacities: Sequence[int], *, drafts: bool = False
) -> None:
    """Assert that a step is well formed; engines call it, so bugs above surface by name.

    `lengths`: KV positions before each sequence. `drafts`: whether the engine takes guesses.
    """
    num_seqs, num_tokens = len(step.slots), len(step.input_ids)
    firsts = [b for b in range(num_seqs) if b == 0 or step.slots[b] != step.slots[b - 1]]
    assert len({step.slots[b] for b in firsts}) == (len(firsts) if drafts else num_seqs), (
        f"step.slots: duplicates in {step.slots}"
    )
    assert step.cu_seqlens.shape == (num_seqs + 1,), (
        f"cu_seqlens: expected [{num_seqs + 1}], got {list(step.cu_seqlens.shape)}"
    )
    assert step.cu_seqlens[0] == 0 and step.cu_seqlens[-1] == num_tokens, (
        f"cu_seqlens: expected 0..{num_tokens}, got {step.cu_seqlens.tolist()}"
    )
    counts = np.diff(step.cu_seqlens)
    assert (counts > 0).all(), f"cu_seqlens: empty sequence in {step.cu_seqlens.tolist()}"
    assert len(firsts) == num_seqs or (np.delete(counts, firsts) == 1).all(), (
        "cu_seqlens: a guess of more than one token"
    )
    assert step.position_ids.shape == (3, num_tokens), (
        f"position_ids: expected [3, T={num_tokens}], got {list(step.position_ids.shape)}"
    )
    if step.visual_row is not None:
        assert step.visual_row.shape == (num_tokens,), (
            f"visual_row: expected [T={num_tokens}], got {list(step.visual_row.shape)}"
        )
        rows = 0 if step.visual_embeds is None else len(step.visual_embeds)
        assert int(step.visual_row.max(initial=-1)) < rows, (
            f"visual_row: row {int(step.visual_row.max())} of visual_embeds [M={rows}, E]"
        )
    assert len(step.visual_keys) in (0, num_seqs), (
        f"visual_keys: expected 0 or {num_seqs} entries, got {len(step.visual_keys)}"
    )
    assert len(step.draws) in (0, num_seqs), (
        f"draws: expected 0 or {num_seqs} entries, got {len(step.draws)}"
    )
    for b in range(num_seqs):
        total = lengths[b] + int(counts[b])
        assert total <= capacities[b], (
            f"slot {step.slots[b]}: {lengths[b]} + {counts[b]} tokens, capacity {capacities[b]}"
        )
        keys = step.visual_keys[b] if step.visual_keys else None
        if keys is not None and len(keys.kv_index):
            assert keys.kv_index.shape == keys.source.shape, "visual_keys: shapes differ"
            _check_range("visual_keys.kv_index", keys.kv_index, total)
            _check_range("visual_keys.source", keys.source, keys.num_visual)


def _check_range(name: str, values: IntArray, end: int) -> None:
    low, high = int(values.min()), int(values.max())
    assert low >= 0, f"{name}: {low} is negative"
    assert high < end, f"{name}: {high} beyond [0, {end})"
