"""A GPU that is none: the CUDA calls of `la_trt/engines/cuda.py`, strict about how they are used.

Work in the stream is kept until somebody waits, as on a busy GPU: host memory that is changed too
early gives wrong numbers. Fresh memory is poison (NaN as a float), freed memory is gone, and an
address is good only within its own allocation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

_FIRST_ADDRESS = 1 << 40
_GAP = 1 << 20
_POISON = 0xFF


class _Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidValue = 1


class FakeCuda:
    """Stands for the module `cuda.bindings.runtime`. `memory_bytes`: what the GPU has."""

    cudaStreamNonBlocking = 1
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="major",
        cudaDevAttrComputeCapabilityMinor="minor",
    )
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, sm: int = 89, memory_bytes: int = 1 << 34) -> None:
        self.sm = sm
        self.free_bytes = memory_bytes
        self.allocations: dict[int, np.ndarray] = {}
        self.host: dict[int, Any] = {}
        self.stream = 0
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.counts: dict[str, int] = {}  # what was put into the stream or a graph
        self.ran: dict[str, int] = {}  # what has run, in graphs too
        self.downloaded_bytes = self.captured_bytes = self.work_done = 0
        self.graph_bytes: dict[int, int] = {}  # what each downloads
        self.events: dict[int, int | None] = {}  # when each was passed: things done before it
        self._next = _FIRST_ADDRESS
        self._handles = 100

    # Memory

    def cudaMalloc(self, num_bytes: int) -> tuple[Any, ...]:
        if num_bytes > self.free_bytes:
            return _Error.cudaErrorMemoryAllocation, 0
        self.free_bytes -= num_bytes
        address = self._next
        self._next += -(-num_bytes // _GAP) * _GAP + _GAP
        self.allocations[address] = np.full(num_bytes, _POISON, np.uint8)
        return _Error.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        assert not self.queue, "cudaFree while the stream has work"
        self.free_bytes += len(self.allocations.pop(address))
        return (_Error.cudaSuccess,)

    def cudaMallocHost(self, num_bytes: int) -> tuple[Any, ...]:
        block = (ctypes.c_uint8 * num_bytes)(*([_POISON] * min(num_bytes, 64)))
        address = ctypes.addressof(block)
        self.host[address] = block
        return _Error.cudaSuccess, address

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        del self.host[address]
        return (_Error.cudaSuccess,)

    def memory(self, address: int, num_bytes: int) -> np.ndarray:
        """The bytes at a device address; they must lie in one live allocation."""
        for start, data in self.allocations.items():
            if start <= address and address + num_bytes <= start + len(data):
                return data[address - start : address - start + num_bytes]
        raise AssertionError(f"device memory {address:#x}, {num_bytes} bytes: not allocated")

    def array(self, address: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """A view of device memory."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.memory(address, size).view(np.dtype(dtype)).reshape(shape)

    # The stream

    def put(self, name: str, work: Callable[[], None]) -> None:
        """Work at the end of the stream, or of the graph that is being recorded."""
        self.counts[name] = self.counts.get(name, 0) + 1

        def run() -> None:
            self.ran[name] = self.ran.get(name, 0) + 1
            work()

        (self.queue if self.captured is None else self.captured).append(run)

    def cudaMemcpyAsync(
        self, to: int, source: int, num_bytes: int, kind: int, stream: int
    ) -> tuple[Any, ...]:
        self._check_stream(stream)
        up = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        host, device = (source, to) if up else (to, source)
        assert any(
            start <= host and host + num_bytes <= start + ctypes.sizeof(block)
            for start, block in self.host.items()
        ), "cudaMemcpyAsync: host memory is not page-locked"
        data = self.memory(device, num_bytes)

        def copy() -> None:
            there = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(host))
            if up:
                self.memory(device, num_bytes)[:] = there
            else:
                there[:] = self.memory(device, num_bytes)

        assert len(data) == num_bytes
        if not up and self.captured is None:
            self.downloaded_bytes += num_bytes
        elif not up:
            self.captured_bytes += num_bytes
        self.put("upload" if up else "download", copy)
        return (_Error.cudaSuccess,)

    def cudaMemsetAsync(
        self, address: int, value: int, num_bytes: int, stream: int
    ) -> tuple[Any, ...]:
        self._check_stream(stream)
        self.put("memset", lambda: self.memory(address, num_bytes).fill(value))
        return (_Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        self._check_stream(stream)
        assert self.captured is None, "cudaStreamSynchronize while recording"
        self.counts["synchronize"] = self.counts.get("synchronize", 0) + 1
        queue, self.queue = self.queue, []
        for work in queue:
            work()
            self.work_done += 1
        return (_Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        assert not self.stream, "a second stream"
        self.stream = self._handle()
        return _Error.cudaSuccess, self.stream

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self._check_stream(stream)
        assert not self.queue
        self.stream = 0
        return (_Error.cudaSuccess,)

    # Events

    def cudaEventCreate(self) -> tuple[Any, ...]:
        event = self._handle()
        self.events[event] = None
        return _Error.cudaSuccess, event

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        del self.events[event]
        return (_Error.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        self._check_stream(stream)
        assert self.captured is None, "an event is recorded into a graph"
        self.events[event] = None
        self.queue.append(lambda: self.events.update({event: self.work_done}))
        return (_Error.cudaSuccess,)

    def cudaEventElapsedTime(self, before: int, after: int) -> tuple[Any, ...]:
        times = self.events[before], self.events[after]
        assert times[0] is not None and times[1] is not None, "an event that was not passed"
        return _Error.cudaSuccess, float(times[1] - times[0])

    # Graphs

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        self._check_stream(stream)
        assert self.captured is None
        self.captured = []
        return (_Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        self._check_stream(stream)
        assert self.captured is not None
        graph = self._handle()
        self.graphs[graph], self.captured = self.captured, None
        self.graph_bytes[graph], self.captured_bytes = self.captured_bytes, 0
        return _Error.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        executable = self._handle()
        self.graphs[executable] = self.graphs[graph]
        self.graph_bytes[executable] = self.graph_bytes[graph]
        return _Error.cudaSuccess, executable

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.graphs[graph]
        return (_Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        assert not self.queue, "a graph is destroyed while the stream has work"
        del self.graphs[graph]
        return (_Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        self._check_stream(stream)
        work = self.graphs[graph]
        self.downloaded_bytes += self.graph_bytes[graph]
        self.put("graph", lambda: [part() for part in work] and None)
        return (_Error.cudaSuccess,)

    # The device

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return (_Error.cudaSuccess if index == 0 else _Error.cudaErrorInvalidValue,)

    def cudaDeviceGetAttribute(self, kind: str, index: int) -> tuple[Any, ...]:
        values = {"major": self.sm // 10, "minor": self.sm % 10, "sms": 24}
        return _Error.cudaSuccess, values[kind]

    def _check_stream(self, stream: int) -> None:
        assert stream and stream == self.stream, "work outside the engine's stream"

    def _handle(self) -> int:
        self._handles += 1
        return self._handles
