"""Runs the decoder graph over rows of the KV buffers, bound in place: the cache is never copied."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from la_trt.bindings import kv_names
from la_trt.config import ModelConfig
from la_trt.engines.base import FloatArray
from la_trt.engines.rows import RowBatch, RowOutput

_DEVICE = "cpu"
_KEPT_BINDINGS = 8
_CACHE_ALIGNMENT = 64


class DecoderRunner:
    """The decoder session and its KV buffers, one (max_batch, K, C, D) for each K and each V.

    `mass`: whether the graph computes it; without, every `visual_index` must be empty.
    """

    def __init__(
        self, session: Any, config: ModelConfig, max_batch: int, max_len: int, *, mass: bool = True
    ) -> None:
        self._session = session
        self._mass = mass
        self._text = config.text
        t = config.text
        shape = (max_batch, t.num_key_value_heads, max_len, t.head_dim)
        self.kv = [_aligned_zeros(shape) for _ in range(2 * t.num_hidden_layers)]
        self._no_visual = np.zeros((1, t.hidden_size), np.float32)
        self._bound: OrderedDict[tuple[int, ...], _Binding] = OrderedDict()

    def keys(self, layer: int, slot: int) -> FloatArray:
        """The cached keys of a slot (K, C, D), a view."""
        view: FloatArray = self.kv[2 * layer][slot]
        return view

    def values(self, layer: int, slot: int) -> FloatArray:
        """The cached values of a slot (K, C, D), a view."""
        view: FloatArray = self.kv[2 * layer + 1][slot]
        return view

    def run(self, rows: RowBatch) -> RowOutput:
        """Logits (R, V) and mass (B, N); both belong to the runner until the next run."""
        batch, length = rows.input_ids.shape
        assert self._mass or not rows.visual_index.size, "visual_index: this graph has no mass"
        embeds = self._no_visual if rows.visual_embeds is None else rows.visual_embeds
        key = (rows.first_slot, batch, length, rows.visual_index.shape[1], len(rows.logits_row))
        if length > 1 or rows.visual_embeds is not None:
            binding = self._bind(*key, len(embeds))
        elif key in self._bound:
            self._bound.move_to_end(key)
            binding = self._bound[key]
        else:
            binding = self._bound[key] = self._bind(*key, len(embeds))
            if len(self._bound) > _KEPT_BINDINGS:
                self._bound.popitem(last=False)
        binding.fill(rows, embeds)
        self._session.run_with_iobinding(binding.io)
        return RowOutput(binding.logits, binding.mass)

    def _bind(
        self, first: int, batch: int, length: int, num_keys: int, num_logits: int, num_visual: int
    ) -> _Binding:
        t = self._text
        half = t.head_dim // 2
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.zeros((batch, length), np.int64),
            "visual_row": np.zeros((batch, length), np.int64),
            "visual_embeds": np.zeros((num_visual, t.hidden_size), np.float32),
            "cos": np.zeros((batch, length, half), np.float32),
            "sin": np.zeros((batch, length, half), np.float32),
            "seqlens_k": np.zeros(batch, np.int32),
            "query_seqlens": np.zeros(batch, np.int32),
            "total_sequence_length": np.zeros(1, np.int32),
            "logits_row": np.zeros(num_logits, np.int64),
        }
        logits = np.zeros((num_logits, t.vocab_size), np.float32)
        mass = np.zeros((batch, num_keys), np.float32)
        outputs = {"logits": logits}
        if self._mass:
            inputs["visual_index"] = np.zeros((batch, num_keys), np.int64)
            outputs["visual_mass"] = mass
        io = self._session.io_binding()
        for name, array in inputs.items():
            io.bind_input(name, _DEVICE, 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            io.bind_output(name, _DEVICE, 0, array.dtype, array.shape, array.ctypes.data)
        layers = t.num_hidden_layers
        names = zip(kv_names("past", layers), kv_names("present", layers), self.kv, strict=True)
        for past, present, buffer in names:
            part = buffer[first : first + batch]
            io.bind_input(past, _DEVICE, 0, part.dtype, part.shape, part.ctypes.data)
            io.bind_output(present, _DEVICE, 0, part.dtype, part.shape, part.ctypes.data)
        return _Binding(io=io, inputs=inputs, logits=logits, mass=mass)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Binding:
    """An I/O binding and the host arrays behind its addresses."""

    io: Any
    inputs: dict[str, NDArray[Any]]
    logits: FloatArray
    mass: FloatArray

    def fill(self, rows: RowBatch, embeds: FloatArray) -> None:
        total = rows.past + rows.query
        into = self.inputs
        into["input_ids"][:] = rows.input_ids
        into["visual_row"][:] = rows.visual_row
        into["visual_embeds"][:] = embeds
        into["cos"][:] = rows.cos
        into["sin"][:] = rows.sin
        into["seqlens_k"][:] = np.maximum(total, 1) - 1
        into["query_seqlens"][:] = rows.query
        into["total_sequence_length"][:] = max(int(total.max()), rows.input_ids.shape[1])
        if "visual_index" in into:
            into["visual_index"][:] = rows.visual_index
        into["logits_row"][:] = rows.logits_row


def _aligned_zeros(shape: tuple[int, ...]) -> FloatArray:
    """Zeros whose pages the system hands out as they are first written."""
    count = int(np.prod(shape))
    extra = _CACHE_ALIGNMENT // 4
    flat = np.zeros(count + extra, np.float32)
    skip = -flat.ctypes.data % _CACHE_ALIGNMENT // 4
    return flat[skip : skip + count].reshape(shape)
