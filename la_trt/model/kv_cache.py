"""KV slots in torch, and the attention of packed sequences over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from la_trt.config import TextConfig
from la_trt.model.attention import attention_probabilities

_BLOCK = 128


class KvCache:
    """K and V of every slot: two tensors (L, slots, K, C, D), K after its rotation.

    C grows to the largest capacity that was asked for, in blocks, since prompts that differ by a
    few tokens would move all of it each time. Positions that hold no token are zero, never left
    over: a batch reads them with probability 0, and 0 * NaN would be NaN.
    """

    def __init__(
        self, config: TextConfig, num_slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        heads, dim = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, num_slots, heads, 0, dim)
        self.k_LBKCD = torch.zeros(shape, dtype=dtype, device=device)
        self.v_LBKCD = torch.zeros(shape, dtype=dtype, device=device)

    def reserve(self, capacity: int) -> None:
        """Make room for slots of `capacity` tokens; what the slots hold stays."""
        if capacity > self.k_LBKCD.shape[3]:
            capacity = -(-capacity // _BLOCK) * _BLOCK
            self.k_LBKCD = _grown(self.k_LBKCD, capacity)
            self.v_LBKCD = _grown(self.v_LBKCD, capacity)

    def clear(self, slot: int, start: int, stop: int) -> None:
        """Zero the positions [start, stop) of a slot."""
        self.k_LBKCD[:, slot, :, start:stop] = 0
        self.v_LBKCD[:, slot, :, start:stop] = 0


def _grown(cache: Tensor, capacity: int) -> Tensor:
    bigger = cache.new_zeros((*cache.shape[:3], capacity, cache.shape[4]))
    bigger[:, :, :, : cache.shape[3]] = cache
    return bigger


class CachedAttention:
    """Causal attention of T packed new tokens of B sequences over their KV slots.

    Appends the tokens' K and V. Sequences with one new token run as one batch, longer ones one
    after another. `mass_BC` sums over layers what each last token of a sequence with
    `want_mass` puts on each of its keys, mean over heads: float32, row per sequence.
    """

    def __init__(
        self,
        cache: KvCache,
        *,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        want_mass: Sequence[bool],
    ) -> None:
        device = cache.k_LBKCD.device
        self.cache = cache
        self.slots, self.starts, self.counts = list(slots), list(starts), list(counts)
        self.want_mass = list(want_mass)
        rows = [range(start, start + n) for start, n in zip(starts, counts, strict=True)]
        self.slot_T = torch.tensor(self.slots, device=device).repeat_interleave(
            torch.tensor(self.counts, device=device)
        )
        self.pos_T = torch.tensor([p for row in rows for p in row], device=device)
        ends = [start + n for start, n in zip(starts, counts, strict=True)]
        self.mass_BC = torch.zeros((len(self.slots), max(ends)), device=device)
        self.singles = [b for b, n in enumerate(self.counts) if n == 1]
        self._prepare_singles(ends, device)

    def _prepare_singles(self, ends: list[int], device: torch.device) -> None:
        lengths = torch.tensor([ends[b] for b in self.singles], device=device)
        self.max_len = max((ends[b] for b in self.singles), default=0)
        allowed_BC = torch.arange(self.max_len, device=device) < lengths[:, None]
        self.allowed_BC = None if bool(allowed_BC.all()) else allowed_BC
        offsets = [sum(self.counts[:b]) for b in self.singles]
        self.single_T = torch.tensor(offsets, device=device, dtype=torch.long)
        self.single_B = torch.tensor(self.singles, device=device, dtype=torch.long)
        slots = [self.slots[b] for b in self.singles]
        self.slot_index: slice | Tensor
        if slots and slots == list(range(slots[0], slots[0] + len(slots))):
            self.slot_index = slice(slots[0], slots[0] + len(slots))
        else:
            self.slot_index = torch.tensor(slots, device=device, dtype=torch.long)
        self.single_wants = any(self.want_mass[b] for b in self.singles)

    def __call__(
        self, layer: int, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor
    ) -> tuple[Tensor, None]:
        q_THD = q_BSHD[0]
        k_BKCD, v_BKCD = self.cache.k_LBKCD[layer], self.cache.v_LBKCD[layer]
        k_BKCD[self.slot_T, :, self.pos_T] = k_BSKD[0].to(k_BKCD.dtype)
        v_BKCD[self.slot_T, :, self.pos_T] = v_BSKD[0].to(v_BKCD.dtype)
        out_THD = torch.empty_like(q_THD)
        if self.singles:
            out_THD[self.single_T] = self._decode(q_THD[self.single_T], k_BKCD, v_BKCD)
        offset = 0
        for b, count in enumerate(self.counts):
            if count > 1:
                part = slice(offset, offset + count)
                out_THD[part] = self._prefill(b, q_THD[part], k_BKCD, v_BKCD)
            offset += count
        return out_THD[None], None

    def _decode(self, q_BHD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor) -> Tensor:
        k = k_BKCD[self.slot_index, :, : self.max_len]
        v = v_BKCD[self.slot_index, :, : self.max_len]
        batch, num_heads, dim = q_BHD.shape
        q_BKGD = q_BHD.view(batch, k.shape[1], -1, dim)
        scores = (q_BKGD @ k.transpose(2, 3)).float() * dim**-0.5
        if self.allowed_BC is not None:
            scores = scores.masked_fill(~self.allowed_BC[:, None, None], float("-inf"))
        probabilities = scores.softmax(-1)
        if self.single_wants:
            self.mass_BC[self.single_B, : self.max_len] += probabilities.mean((1, 2))
        out_BHD: Tensor = (probabilities.to(v.dtype) @ v).reshape(batch, num_heads, dim)
        return out_BHD

    def _prefill(self, b: int, q_SHD: Tensor, k_BKCD: Tensor, v_BKCD: Tensor) -> Tensor:
        slot, start, count = self.slots[b], self.starts[b], self.counts[b]
        k, v = k_BKCD[slot, None, :, : start + count], v_BKCD[slot, None, :, : start + count]
        mask = None
        if start:
            mask = torch.ones((count, start + count), dtype=torch.bool, device=k.device)
            mask = mask.tril(diagonal=start)
        out = F.scaled_dot_product_attention(
            q_SHD.transpose(0, 1)[None],
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=q_SHD.shape[1] != k.shape[1],
        )
        if self.want_mass[b]:
            probabilities = attention_probabilities(q_SHD[None, -1:], k.transpose(1, 2))
            self.mass_BC[b, : start + count] += probabilities[0, 0]
        return out[0].transpose(0, 1)
