"""The GPU engine: a bundle's TensorRT plans, our plugins in them, decoding by CUDA graphs.

Has not run on a GPU: its tests drive it over a fake of the CUDA and TensorRT calls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from la_trt.bindings import (
    decoder_inputs,
    decoder_outputs,
    kv_capacity,
    place,
    shape_of,
    vision_inputs,
    vision_outputs,
)
from la_trt.config import ModelConfig
from la_trt.engines.base import EngineLimits, FloatArray, IntArray
from la_trt.engines.cuda import Device, cuda_runtime
from la_trt.engines.cuda_timing import StageTime, StageTimer
from la_trt.engines.onnx_vision import VisionRunner
from la_trt.engines.rope import shift_tables
from la_trt.engines.rows import RowEngine
from la_trt.engines.slots import SlotTable
from la_trt.engines.tensorrt_calls import KernelCalls
from la_trt.engines.tensorrt_library import (
    TensorRT,
    load_tensorrt,
    plugin_library,
    register_plugins,
)
from la_trt.engines.tensorrt_plan import Plan
from la_trt.engines.tensorrt_record import EngineRecord, read_record
from la_trt.engines.tensorrt_runner import TensorRTRunner
from la_trt.errors import UsageError
from la_trt.files.bundle import Bundle

_COPIES_AT_ONCE = 16  # injections between two passes before the host has to wait


class TensorRTEngine(RowEngine):
    """An `Engine` on TensorRT. KV slots are rows of one GPU buffer for each layer's K and V.

    `max_batch`, `max_len`: at most what the engines were built for. `graphs`: record decoding as
    CUDA graphs. `plugins`: the plugin library, by default la-trt's. `trt`, `runtime`, `calls`
    stand for the installed TensorRT, CUDA and kernels; tests give others. Raises BundleError
    (E_ENGINE_VERSION, E_ENGINE_PLUGIN, E_SM, E_PLAN), MachineError, UsageError.
    """

    _decoder: TensorRTRunner

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_batch: int | None = None,
        max_len: int | None = None,
        graphs: bool = True,
        plugins: Path | None = None,
        trt: TensorRT | None = None,
        runtime: Any = None,
        calls: KernelCalls | None = None,
    ) -> None:
        record = read_record(bundle)
        self._config = bundle.config
        max_batch = record.max_batch if max_batch is None else max_batch
        if max_batch > record.max_batch:
            raise UsageError(
                f"max_batch: expected at most {record.max_batch}, got {max_batch}\n"
                f"build with --max-batch {max_batch}"
            )
        self._slots = SlotTable.of_bundle(bundle.limits.max_model_len, max_batch, max_len)
        trt = load_tensorrt(record.runtime) if trt is None else trt
        library = plugin_library(plugins)
        record.check(trt, library, where=bundle.path)
        register_plugins(trt, library)
        self._calls = KernelCalls(library) if calls is None else calls
        self._kv_dtype, self._chunk_tokens = record.kv_dtype, record.prefill_chunk
        self._device = Device(cuda_runtime() if runtime is None else runtime)
        try:
            self._load(bundle, record, trt, max_batch, graphs)
        except BaseException:
            self._device.close()
            raise
        self._limits = EngineLimits(
            name="tensorrt",
            device=f"cuda:0 (SM {self._device.sm})",
            dtype=record.dtype if record.quant == "none" else record.quant,
            max_batch=max_batch,
            max_len=self._slots.max_len,
            supports_draw=True,
            details={
                record.runtime: record.version,
                "plugins": library.sha256[:12],
                "kv_dtype": record.kv_dtype,
                "cuda_graphs": "on" if graphs else "off",
            },
        )

    def _load(
        self, bundle: Bundle, record: EngineRecord, trt: TensorRT, max_batch: int, graphs: bool
    ) -> None:
        device, config, dtype = self._device, self._config, record.dtype
        kv_dtype = record.kv_dtype
        tables = {
            "vision": (vision_inputs(config, dtype=dtype), vision_outputs(config, dtype=dtype)),
            "decoder": (
                decoder_inputs(config, dtype=dtype, kv_dtype=kv_dtype),
                decoder_outputs(config, dtype=dtype, kv_dtype=kv_dtype),
            ),
        }
        plans = {}
        for graph, (inputs, outputs) in tables.items():
            file = record.find(graph, device.sm, where=bundle.path)
            plans[graph] = Plan(trt, device, bundle.file(file.path), file, inputs, outputs)
        self._timer = StageTimer(device)
        self._plans = tuple(plans.values())
        self._session = _VisionSession(plans["vision"], device, config, dtype, self._timer)
        self._vision = VisionRunner(self._session, config.vision, images_at_once=1)
        self._decoder = TensorRTRunner(
            plans["decoder"],
            device,
            config,
            dtype=dtype,
            kv_dtype=kv_dtype,
            max_batch=max_batch,
            max_len=self._slots.max_len,
            chunk=record.prefill_chunk,
            calls=self._calls,
            timer=self._timer,
            graphs=graphs,
        )
        self._copies = _CopyTables(device, self._slots.max_len, config.text.head_dim)

    def vision(self, pixel_values: FloatArray, grid_thw: IntArray) -> FloatArray:
        """Visual embeddings (M, E), one image after another."""
        return self._vision(pixel_values, grid_thw)

    def _chunk(self, total: int) -> int:
        return self._chunk_tokens

    def kv_reinject(self, slot: int, source_index: IntArray, delta: int) -> None:
        """Append copies of the cached K and V at `source_index`, K rotated by `delta`.

        Put into the stream behind whatever runs; the host does not wait.
        """
        length, count = self.length(slot), len(source_index)
        self._slots.check_copies(slot, source_index)
        if not count:
            return
        text = self._config.text
        tables = shift_tables(delta, text.rope_theta, text.head_dim)
        with self._timer.stage("kv_reinject"):
            indices, cos, sin = self._copies.upload(source_index, *tables)
            kv = self._decoder.kv
            scales = zip(kv("key_scale"), kv("value_scale"), strict=True)
            self._calls.kv_reinject(
                kv("key"),
                kv("value"),
                [address for pair in scales for address in pair],
                indices,
                cos,
                sin,
                kv_dtype=self._kv_dtype,
                num_kv_heads=text.num_key_value_heads,
                head_dim=text.head_dim,
                capacity=kv_capacity(self._slots.max_len),
                slot=slot,
                num_tokens=count,
                first=length,
                stream=self._device.stream,
            )
        self._slots.grow(slot, count)

    def stage_times(self) -> dict[str, StageTime]:
        """The GPU's time since the start for `vision`, `chunk` (prefill, and re-injection by
        `embed`), `token` (a decoding pass) and `kv_reinject`, as far as they ran.
        """
        self._device.synchronize()
        self._timer.collect()
        return dict(self._timer.stages)

    def close(self) -> None:
        """Give all GPU memory back; the engine is of no use afterwards."""
        self._decoder.close()
        self._session.close()
        for plan in self._plans:
            plan.close()
        self._device.close()


class _CopyTables:
    """Indices and angles of injections on their way to the GPU, several at a time."""

    def __init__(self, device: Device, max_len: int, head_dim: int) -> None:
        self._device = device
        self._index_bytes = -(-8 * max_len // 256) * 256
        self._angle_bytes = -(-4 * head_dim // 2 // 256) * 256
        self._stride = self._index_bytes + 2 * self._angle_bytes
        self._address = device.malloc(_COPIES_AT_ONCE * self._stride)
        self._host = device.host_bytes(_COPIES_AT_ONCE * self._stride)
        self._used = 0

    def upload(
        self, source_index: IntArray, cos: FloatArray, sin: FloatArray
    ) -> tuple[int, int, int]:
        """Addresses of the indices (N,) int64 and of cos and sin (D / 2,) float32."""
        if self._used == _COPIES_AT_ONCE:
            self._device.synchronize()
            self._used = 0
        start = self._used * self._stride
        self._used += 1
        host = self._host[start : start + self._stride]
        host[: 8 * len(source_index)].view(np.int64)[:] = source_index
        starts = (0, self._index_bytes, self._index_bytes + self._angle_bytes)
        for offset, table in zip(starts[1:], (cos, sin), strict=True):
            host[offset : offset + 4 * len(table)].view(np.float32)[:] = table
        self._device.upload(self._address + start, host)
        indices, first, second = (self._address + start + offset for offset in starts)
        return indices, first, second


class _VisionSession:
    """The vision plan as `VisionRunner` calls it: one image a run, buffers allocated once."""

    def __init__(
        self, plan: Plan, device: Device, config: ModelConfig, dtype: str, timer: StageTimer
    ) -> None:
        self._plan, self._device, self._timer = plan, device, timer
        self._inputs = vision_inputs(config, dtype=dtype)
        self._outputs = vision_outputs(config, dtype=dtype)
        self._unit = config.vision.spatial_merge_size**2
        largest = {
            letter: size
            for b in self._inputs
            for letter, size in zip(b.shape, plan.profiles[0].shapes[b.name][2], strict=True)
            if isinstance(letter, str)
        }
        largest["M"] = largest["GP"] // self._unit
        total = place((*self._inputs, *self._outputs), largest)[1]
        self._address, self._host = device.malloc(total), device.host_bytes(total)
        self._contexts: dict[int, Any] = {}

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """The outputs `names` of one pass; they belong to the session until the next."""
        letters = {
            letter: size
            for b in self._inputs
            for letter, size in zip(b.shape, feeds[b.name].shape, strict=True)
            if isinstance(letter, str)
        }
        letters["M"] = letters["GP"] // self._unit
        places, _ = place((*self._inputs, *self._outputs), letters)
        for b in self._inputs:
            self._view(places[b.name])[:] = feeds[b.name]
        up = places[self._outputs[0].name].offset
        shapes = {b.name: shape_of(b, letters) for b in self._inputs}
        profile = self._plan.profile_for(shapes)
        if profile not in self._contexts:
            self._contexts[profile] = self._plan.context(profile)
        addresses = {name: self._address + p.offset for name, p in places.items()}
        with self._timer.stage("vision"):
            self._device.upload(self._address, self._host[:up])
            self._plan.enqueue(self._contexts[profile], shapes, addresses)
            for b in self._outputs:
                found = places[b.name]
                part = self._host[found.offset : found.offset + found.num_bytes]
                self._device.download(part, self._address + found.offset)
        self._device.synchronize()
        self._timer.collect()
        return [self._view(places[name]) for name in names]

    def close(self) -> None:
        """Drop the contexts; the memory is the device's to free."""
        self._contexts.clear()

    def _view(self, found: Any) -> Any:
        part = self._host[found.offset : found.offset + found.num_bytes]
        return part.view(np.dtype(found.binding.dtype)).reshape(found.shape)
