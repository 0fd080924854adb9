"""Runs the decoder plan over KV buffers in GPU memory; decoding replays recorded CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from la_trt.bindings import (
    Place,
    decoder_inputs,
    decoder_outputs,
    kv_names,
    place,
    shape_of,
)
from la_trt.config import ModelConfig
from la_trt.engines.base import FloatArray
from la_trt.engines.cuda import Device
from la_trt.engines.rows import RowBatch
from la_trt.engines.tensorrt_plan import Plan
from la_trt.engines.tensorrt_record import Shape

_KEPT_GRAPHS = 8
_FEWEST_VISUAL = 64
_NO_KEY = -1  # a key that is none: its mass is unspecified and never read
_RESULTS = ("logits", "visual_mass")


class TensorRTRunner:
    """The decoder's plan and every buffer that it is bound to, each allocated once.

    Small inputs travel as one copy from page-locked memory, results come back as one each, and
    the host waits once a run. KV: one (max_batch, K, C, D) of `dtype` for each K and each V.
    """

    def __init__(
        self,
        plan: Plan,
        device: Device,
        config: ModelConfig,
        *,
        dtype: str,
        max_batch: int,
        max_len: int,
        chunk: int,
        graphs: bool = True,
    ) -> None:
        self._plan, self._device, self._text = plan, device, config.text
        self._dtype = np.dtype(dtype)
        self._max_len, self._max_batch = max_len, max_batch
        self._graphs_on = graphs
        tables = decoder_inputs(config, dtype=dtype), decoder_outputs(config, dtype=dtype)
        kv = {*kv_names("past", config.text.num_hidden_layers)}
        self._inputs = tables[0]
        self._small = [b for b in tables[0] if b.name not in kv and b.name != "visual_embeds"]
        self._embeds_binding = next(b for b in tables[0] if b.name == "visual_embeds")
        self._results = [b for b in tables[1] if b.name in _RESULTS]
        most = {"B": max_batch, "S": 1, "N": max_len, "R": max_batch}
        one = {"B": 1, "S": chunk, "N": max_len, "R": 1}
        staged = max(place(self._small, letters)[1] for letters in (most, one))
        self._staging = _Block(device, staged)
        self._output = _Block(device, place(self._results, most)[1])
        width = config.text.hidden_size * self._dtype.itemsize
        self._embeds = _Block(device, max_len * width)
        device.clear(self._embeds.address, max_len * width)
        self._row_bytes = config.text.head_dim * self._dtype.itemsize
        self._slot_bytes = config.text.num_key_value_heads * max_len * self._row_bytes
        self.kv = [
            device.malloc(max_batch * self._slot_bytes)
            for _ in range(2 * config.text.num_hidden_layers)
        ]
        for address in self.kv:
            device.clear(address, max_batch * self._slot_bytes)
        self._eager: dict[int, Any] = {}
        self._recorded: OrderedDict[tuple[int, ...], _Recorded] = OrderedDict()

    def run(self, rows: RowBatch) -> tuple[FloatArray, FloatArray]:
        """(logits (R, V), mass (B, N)); both belong to the runner until the next run."""
        letters = self._letters(rows)
        self._fill(rows, letters)
        results, _ = place(self._results, letters)
        if letters["S"] == 1 and rows.visual_embeds is None and self._graphs_on:
            self._decode(rows, letters)
        else:
            self._pass(rows, letters, self._context(rows, letters))
        self._device.synchronize()
        logits, mass = (self._output.view(results[name]) for name in _RESULTS)
        return logits, mass[:, : rows.visual_index.shape[1]]

    def num_graphs(self) -> int:
        """Recorded graphs that are kept now."""
        return sum(1 for r in self._recorded.values() if r.graph)

    def close(self) -> None:
        """Wait, then drop the recorded graphs; the memory is the device's to free."""
        self._device.synchronize()
        for recorded in self._recorded.values():
            if recorded.graph:
                self._device.drop(recorded.graph)
        self._recorded.clear()

    def _letters(self, rows: RowBatch) -> dict[str, int]:
        batch, length = rows.input_ids.shape
        visual = rows.visual_embeds
        return {
            "B": batch,
            "S": length,
            "M": 1 if visual is None else len(visual),
            "N": _padded(rows.visual_index.shape[1], self._max_len),
            "C": self._max_len,
            "R": len(rows.logits_row),
        }

    def _fill(self, rows: RowBatch, letters: Mapping[str, int]) -> None:
        """The run's inputs in page-locked memory."""
        places, _ = place(self._small, letters)
        into = {name: self._staging.view(p) for name, p in places.items()}
        total = rows.past + rows.query
        into["input_ids"][:] = rows.input_ids
        into["visual_row"][:] = rows.visual_row
        into["cos"][:] = rows.cos
        into["sin"][:] = rows.sin
        into["seqlens_k"][:] = np.maximum(total, 1) - 1
        into["query_seqlens"][:] = rows.query
        into["total_sequence_length"][:] = max(int(total.max()), letters["S"])
        into["visual_index"][:] = _NO_KEY
        into["visual_index"][:, : rows.visual_index.shape[1]] = rows.visual_index
        into["logits_row"][:] = rows.logits_row
        if rows.visual_embeds is not None:
            count = rows.visual_embeds.shape
            assert count[0] <= self._max_len, f"visual_embeds: {count[0]} rows of {self._max_len}"
            host = self._embeds.host[: count[0] * count[1] * self._dtype.itemsize]
            host.view(self._dtype).reshape(count)[:] = rows.visual_embeds

    def _decode(self, rows: RowBatch, letters: Mapping[str, int]) -> None:
        """Replay the graph of these shapes; the first pass of a shape runs as it is, so that
        TensorRT has prepared it, the second is recorded.
        """
        key = (rows.first_slot, letters["B"], letters["N"], letters["R"])
        recorded = self._recorded.get(key)
        if recorded is None:
            context = self._plan.context(self._plan.profile_for(self._shapes(letters)))
            self._recorded[key] = _Recorded(context)
            self._pass(rows, letters, context)
            if len(self._recorded) > _KEPT_GRAPHS:
                _, oldest = self._recorded.popitem(last=False)
                if oldest.graph:
                    self._device.synchronize()
                    self._device.drop(oldest.graph)
            return
        self._recorded.move_to_end(key)
        if not recorded.graph:
            if not _capturable(recorded.context, self._device.stream):
                self._pass(rows, letters, recorded.context)
                return
            graphs: list[int] = []
            with self._device.capture(graphs):
                self._pass(rows, letters, recorded.context)
            (recorded.graph,) = graphs
        self._device.launch(recorded.graph)

    def _context(self, rows: RowBatch, letters: Mapping[str, int]) -> Any:
        profile = self._plan.profile_for(self._shapes(letters))
        if profile not in self._eager:
            self._eager[profile] = self._plan.context(profile)
        return self._eager[profile]

    def _pass(self, rows: RowBatch, letters: Mapping[str, int], context: Any) -> None:
        """Inputs up, the plan, results down: all in the stream."""
        places, num_bytes = place(self._small, letters)
        results, _ = place(self._results, letters)
        self._device.upload(self._staging.address, self._staging.host[:num_bytes])
        if rows.visual_embeds is not None:
            size = rows.visual_embeds.size * self._dtype.itemsize
            self._device.upload(self._embeds.address, self._embeds.host[:size])
        addresses = {name: self._staging.at(p) for name, p in places.items()}
        addresses |= {name: self._output.at(p) for name, p in results.items()}
        addresses["visual_embeds"] = self._embeds.address
        layers = self._text.num_hidden_layers
        names = zip(kv_names("past", layers), kv_names("present", layers), self.kv, strict=True)
        for past, present, buffer in names:
            addresses[past] = addresses[present] = buffer + rows.first_slot * self._slot_bytes
        self._plan.enqueue(context, self._shapes(letters), addresses)
        for found in results.values():
            if found.num_bytes:
                self._device.download(self._output.part(found), self._output.at(found))

    def _shapes(self, letters: Mapping[str, int]) -> dict[str, Shape]:
        return {b.name: shape_of(b, letters) for b in self._inputs}


@dataclass(slots=True)
class _Recorded:
    """A context that runs one set of shapes at one place, and its graph once there is one."""

    context: Any
    graph: int = 0


class _Block:
    """Device memory and as much page-locked host memory, laid out alike."""

    def __init__(self, device: Device, num_bytes: int) -> None:
        self.address = device.malloc(num_bytes)
        self.host = device.host_bytes(num_bytes)

    def at(self, found: Place) -> int:
        """The device address of a binding."""
        return self.address + found.offset

    def part(self, found: Place) -> NDArray[np.uint8]:
        """The host bytes of a binding."""
        return self.host[found.offset : found.offset + found.num_bytes]

    def view(self, found: Place) -> NDArray[Any]:
        """The host values of a binding."""
        values: NDArray[Any] = self.part(found).view(np.dtype(found.binding.dtype))
        return values.reshape(found.shape)


def _padded(num_visual: int, most: int) -> int:
    """`num_visual` rounded up to a power of two, so that few graphs serve a growing context."""
    if num_visual == 0:
        return 0
    return min(most, max(_FEWEST_VISUAL, 1 << (num_visual - 1).bit_length()))


def _capturable(context: Any, stream: int) -> bool:
    """TensorRT-RTX may still be compiling kernels for the shapes; others always are."""
    check = getattr(context, "is_stream_capturable", None)
    return True if check is None else bool(check(stream))
