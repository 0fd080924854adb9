"""Runs the decoder plan over KV buffers in GPU memory; decoding replays recorded CUDA graphs."""

from __future__ import annotations

import math
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
    kv_bindings,
    kv_capacity,
    place,
    sampling_inputs,
    sampling_outputs,
    shape_of,
)
from la_trt.config import ModelConfig
from la_trt.engines.base import Draw, Drawn
from la_trt.engines.cuda import Device
from la_trt.engines.cuda_timing import StageTimer
from la_trt.engines.rows import RowBatch, RowOutput
from la_trt.engines.tensorrt_calls import KernelCalls
from la_trt.engines.tensorrt_plan import Plan
from la_trt.engines.tensorrt_record import Shape

_KEPT_GRAPHS = 8
_FEWEST_VISUAL = 64
_NO_KEY = -1  # a key that is none: its mass is unspecified and never read
_GREEDY = Draw()


class TensorRTRunner:
    """The decoder's plan and every buffer that it is bound to, each allocated once.

    Small inputs travel as one copy from page-locked memory, results come back as one each, and
    the host waits once a run. Tokens are drawn by our kernel behind the plan, in the same stream.
    KV: one (max_batch, K, C, D) of `kv_dtype` for each K and each V, and where those are codes as
    many (max_batch, K, C) scales.
    """

    def __init__(
        self,
        plan: Plan,
        device: Device,
        config: ModelConfig,
        *,
        dtype: str,
        kv_dtype: str,
        max_batch: int,
        max_len: int,
        chunk: int,
        calls: KernelCalls,
        timer: StageTimer,
        graphs: bool = True,
    ) -> None:
        self._plan, self._device, self._text = plan, device, config.text
        self._dtype = np.dtype(dtype)
        self._max_len = max_len
        self._calls, self._timer, self._graphs_on = calls, timer, graphs
        tables = (
            decoder_inputs(config, dtype=dtype, kv_dtype=kv_dtype),
            decoder_outputs(config, dtype=dtype, kv_dtype=kv_dtype),
        )
        kv = kv_bindings(config, "past", kv_dtype)
        apart = {"visual_embeds", *(b.name for b in kv)}
        self._inputs = tables[0]
        self._small = [
            *(b for b in tables[0] if b.name not in apart),
            *sampling_inputs(),
        ]
        present = {b.name for b in kv_bindings(config, "present", kv_dtype)}
        self._results = [b for b in tables[1] if b.name not in present]
        self._results += sampling_outputs()
        most = {"B": max_batch, "S": 1, "N": max_len, "R": max_batch}
        one = {"B": 1, "S": chunk, "N": max_len, "R": 1}
        staged = max(place(self._small, letters)[1] for letters in (most, one))
        self._staging = _Block(device, staged)
        self._output = _Block(device, place(self._results, most)[1])
        width = config.text.hidden_size * self._dtype.itemsize
        self._embeds = _Block(device, max_len * width)
        device.clear(self._embeds.address, max_len * width)
        slots = {"B": max_batch, "C": kv_capacity(max_len)}
        self._cache: dict[str, tuple[int, int]] = {}  # address, and bytes of a slot
        for binding in kv:
            num_bytes = math.prod(shape_of(binding, slots)) * np.dtype(binding.dtype).itemsize
            address = device.malloc(num_bytes)
            device.clear(address, num_bytes)
            self._cache[binding.name] = (address, num_bytes // max_batch)
        self._eager: dict[int, Any] = {}
        self._recorded: OrderedDict[tuple[int, ...], _Recorded] = OrderedDict()

    def run(self, rows: RowBatch) -> RowOutput:
        """Logits and mass; tokens where they are drawn, and then only they and the mass come back
        from the GPU.
        """
        letters = self._letters(rows)
        self._fill(rows, letters)
        results, _ = place(self._results, letters)
        with self._timer.stage("token" if letters["S"] == 1 else "chunk"):
            if letters["S"] == 1 and rows.visual_embeds is None and self._graphs_on:
                self._decode(rows, letters)
            else:
                self._pass(rows, letters, self._context(letters))
        self._device.synchronize()
        self._timer.collect()
        logits, mass, token, logprob = (self._output.view(found) for found in results.values())
        drawn = zip(rows.draws, token.tolist(), logprob.tolist(), strict=False)
        return RowOutput(
            logits,
            mass[:, : rows.visual_index.shape[1]],
            tuple(None if d is None else Drawn(token=t, logprob=p) for d, t, p in drawn),
        )

    def kv(self, kind: str) -> list[int]:
        """Addresses of every layer's `key`, `value`, `key_scale` or `value_scale`, if any."""
        prefix = f"past_{kind}."
        return [at for name, (at, _) in self._cache.items() if name.startswith(prefix)]

    def close(self) -> None:
        """Wait, then drop the recorded graphs and contexts; the memory is the device's to free."""
        self._device.synchronize()
        for recorded in self._recorded.values():
            if recorded.graph:
                self._device.drop(recorded.graph)
        self._recorded.clear()
        self._eager.clear()

    def _letters(self, rows: RowBatch) -> dict[str, int]:
        batch, length = rows.input_ids.shape
        visual = rows.visual_embeds
        return {
            "B": batch,
            "S": length,
            "M": 1 if visual is None else len(visual),
            "N": _padded(rows.visual_index.shape[1], self._max_len),
            "C": kv_capacity(self._max_len),
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
        draws = rows.draws or (None,) * len(rows.logits_row)
        for name in (b.name for b in sampling_inputs()):
            into[name][:] = [getattr(d or _GREEDY, name) for d in draws]
        if rows.visual_embeds is not None:
            count = rows.visual_embeds.shape
            assert count[0] <= self._max_len, f"visual_embeds: {count[0]} rows of {self._max_len}"
            host = self._embeds.host[: count[0] * count[1] * self._dtype.itemsize]
            host.view(self._dtype).reshape(count)[:] = rows.visual_embeds

    def _decode(self, rows: RowBatch, letters: Mapping[str, int]) -> None:
        """Replay the graph of these shapes; the first pass of a shape runs as it is, so that
        TensorRT has prepared it, the second is recorded.
        """
        sizes = (rows.first_slot, letters["B"], letters["N"], letters["R"])
        key = (*sizes, *_wanted(rows))
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

    def _context(self, letters: Mapping[str, int]) -> Any:
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
        for past, (address, slot_bytes) in self._cache.items():
            place_of_slot = address + rows.first_slot * slot_bytes
            addresses[past] = addresses[past.replace("past_", "present_")] = place_of_slot
        inputs = {b.name: addresses.pop(b.name) for b in sampling_inputs()}
        outputs = {b.name: addresses.pop(b.name) for b in sampling_outputs()}
        self._plan.enqueue(context, self._shapes(letters), addresses)
        some_drawn, some_logits = _wanted(rows)
        if some_drawn:
            self._calls.sample(
                addresses["logits"],
                **inputs,
                **outputs,
                batch=letters["R"],
                vocab_size=self._text.vocab_size,
                stream=self._device.stream,
            )
        unwanted = {"logits"} if not some_logits else set()
        unwanted |= set() if some_drawn else set(outputs)
        for name, found in results.items():
            if found.num_bytes and name not in unwanted:
                self._device.download(self._output.part(found), self._output.at(found))

    def _shapes(self, letters: Mapping[str, int]) -> dict[str, Shape]:
        return {b.name: shape_of(b, letters) for b in self._inputs}


def _wanted(rows: RowBatch) -> tuple[bool, bool]:
    """Whether any row's token is drawn, and whether any row's logits are wanted."""
    if not rows.draws:
        return False, bool(len(rows.logits_row))
    return any(d is not None for d in rows.draws), any(d is None for d in rows.draws)


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
