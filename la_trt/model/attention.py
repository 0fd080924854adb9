"""Attention of the decoder over a right-padded batch, with re-injected keys and mass.

A strategy object rather than part of the layer: the layer projects and rotates, the strategy
knows which keys there are and who may see them. The engine brings one with a KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from la_trt.model.layers import apply_rotary


class Attention(Protocol):
    """What a decoder layer asks: (B, S, H, D) queries -> (B, S, H, D), and mass or None."""

    def __call__(
        self, layer: int, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor
    ) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCopies:
    """Re-injection of kind `kv` in a batched forward pass: keys that have no query.

    `source_index_BN` int64: position in the sequence whose K and V are copied.
    `delta_BN` int64: how far t, h and w all move; one plain rotation (docs/architecture.md,
    Looking again).
    `visible_from_BN` int64: first position of the sequence that sees the copy, the one of its
    `<REFLECTION>`; S or more for padding. Gradients flow back to the source's K and V.
    """

    source_index_BN: Tensor
    delta_BN: Tensor
    visible_from_BN: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MassQuery:
    """Which attention to report: of queries at `query_index_BQ`, on keys `key_index_BN`.

    Key indices below S name positions of the sequence, S + n the n-th of `KvCopies`.
    """

    query_index_BQ: Tensor
    key_index_BN: Tensor


def gather_rows(x_BSHD: Tensor, index_BN: Tensor) -> Tensor:
    """`x[b, index[b, n]]`: (B, N, H, D)."""
    batch = torch.arange(len(index_BN), device=index_BN.device)[:, None]
    return x_BSHD[batch, index_BN]


def attention_probabilities(
    q_BQHD: Tensor, k_BCKD: Tensor, allowed_BQC: Tensor | None = None
) -> Tensor:
    """Softmax probabilities, mean over query heads: (B, Q, C) float32.

    `allowed_BQC` bool: keys that a query may see; None: all of them.
    """
    batch, num_queries, _, dim = q_BQHD.shape
    q = q_BQHD.float().reshape(batch, num_queries, k_BCKD.shape[2], -1, dim)
    scores = torch.einsum("bqkgd,bckd->bkgqc", q, k_BCKD.float()) * dim**-0.5
    if allowed_BQC is not None:
        scores = scores.masked_fill(~allowed_BQC[:, None, None], float("-inf"))
    probabilities: Tensor = scores.softmax(-1).mean((1, 2))
    return probabilities


class CausalAttention:
    """Causal attention of B right-padded sequences over themselves and their kv copies.

    No padding mask is needed: a real token sees no later one, and outputs at padding are
    garbage that nobody reads. `cos` and `sin` (B, N, D / 2) rotate the copies by their delta.
    """

    def __init__(
        self,
        *,
        copies: KvCopies | None = None,
        copy_rotation: tuple[Tensor, Tensor] | None = None,
        mass: MassQuery | None = None,
    ) -> None:
        assert (copies is None) == (copy_rotation is None), "copies and their rotation go together"
        self.copies = copies
        self.copy_rotation = copy_rotation
        self.mass = mass

    def __call__(
        self, layer: int, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        k, v, mask = k_BSKD, v_BSKD, None
        if self.copies is not None and self.copy_rotation is not None:
            source = self.copies.source_index_BN
            k_copy = apply_rotary(gather_rows(k, source), *self.copy_rotation)
            k = torch.cat((k, k_copy), dim=1)
            v = torch.cat((v, gather_rows(v, source)), dim=1)
            mask = self._allowed(torch.arange(q_BSHD.shape[1], device=q_BSHD.device)[None])
        out = F.scaled_dot_product_attention(
            q_BSHD.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=None if mask is None else mask[:, None],
            is_causal=mask is None,
            enable_gqa=q_BSHD.shape[2] != k.shape[2],
        ).transpose(1, 2)
        return out, self._mass(q_BSHD, k)

    def _allowed(self, query_index_BQ: Tensor, length: int | None = None) -> Tensor:
        """(B, Q, S + N) bool: which keys the queries at these positions see."""
        length = query_index_BQ.shape[1] if length is None else length
        keys_S = torch.arange(length, device=query_index_BQ.device)
        causal = query_index_BQ[..., None] >= keys_S
        if self.copies is None:
            return causal
        seen = query_index_BQ[..., None] >= self.copies.visible_from_BN[:, None, :]
        return torch.cat((causal.expand(len(seen), -1, -1), seen), dim=2)

    def _mass(self, q_BSHD: Tensor, k_BCKD: Tensor) -> Tensor | None:
        if self.mass is None:
            return None
        query, key = self.mass.query_index_BQ, self.mass.key_index_BN
        allowed = self._allowed(query, q_BSHD.shape[1])
        probabilities = attention_probabilities(gather_rows(q_BSHD, query), k_BCKD, allowed)
        return probabilities.gather(2, key[:, None].expand(-1, query.shape[1], -1))
