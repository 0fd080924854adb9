"""The CUDA calls that an engine makes: memory, one stream, copies, graphs, events.

Every copy is asynchronous and in the order of the stream; host memory is page-locked, and the
caller keeps it unchanged until `synchronize`.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from la_trt.errors import MachineError

_MEMORY_ERRORS = ("cudaErrorMemoryAllocation",)


class Device:
    """One GPU, one stream. `close` gives everything back that is still allocated.

    `runtime`: the module `cuda.bindings.runtime`, or one with its functions. Raises
    MachineError: E_CUDA for any call that fails, E_MEMORY where the memory is full.
    """

    def __init__(self, runtime: Any, index: int = 0) -> None:
        self._rt = runtime
        self._device_memory: set[int] = set()
        self._host_memory: set[int] = set()
        self._events: list[int] = []
        self._call("cudaSetDevice", index)
        kinds = runtime.cudaDeviceAttr
        major = self._call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMajor, index)
        minor = self._call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMinor, index)
        self.sm = 10 * int(major) + int(minor)
        self.stream = int(self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))

    def malloc(self, num_bytes: int) -> int:
        """The address of device memory; its content is unspecified."""
        address = int(self._call("cudaMalloc", max(1, num_bytes)))
        self._device_memory.add(address)
        return address

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._device_memory.remove(address)
        self._call("cudaFree", address)

    def host_bytes(self, num_bytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, zeros; it lives as long as the device is open."""
        address = int(self._call("cudaMallocHost", max(1, num_bytes)))
        self._host_memory.add(address)
        block = (ctypes.c_uint8 * num_bytes).from_address(address)
        array: NDArray[np.uint8] = np.ctypeslib.as_array(block)
        array[:] = 0
        return array

    def upload(self, address: int, host: NDArray[Any]) -> None:
        """Copy a contiguous array of page-locked memory to the device."""
        assert host.flags.c_contiguous, "upload: the array is not contiguous"
        self._copy(address, host.ctypes.data, host.nbytes, "cudaMemcpyHostToDevice")

    def download(self, host: NDArray[Any], address: int) -> None:
        """Copy from the device into a contiguous array of page-locked memory."""
        assert host.flags.c_contiguous, "download: the array is not contiguous"
        self._copy(host.ctypes.data, address, host.nbytes, "cudaMemcpyDeviceToHost")

    def clear(self, address: int, num_bytes: int) -> None:
        """Set device memory to zero."""
        self._call("cudaMemsetAsync", address, 0, num_bytes, self.stream)

    def synchronize(self) -> None:
        """Wait for everything in the stream."""
        self._call("cudaStreamSynchronize", self.stream)

    @contextlib.contextmanager
    def capture(self, graphs: list[int]) -> Iterator[None]:
        """Record what the block puts into the stream; the graph is appended to `graphs`."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            yield
        except BaseException:
            with contextlib.suppress(MachineError):
                self._call("cudaStreamEndCapture", self.stream)
            raise
        graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            graphs.append(int(self._call("cudaGraphInstantiate", graph, 0)))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int) -> None:
        """Put a recorded graph into the stream."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def drop(self, graph: int) -> None:
        """Forget a recorded graph."""
        self._call("cudaGraphExecDestroy", graph)

    def event(self) -> int:
        """A new event; it lives as long as the device is open."""
        self._events.append(int(self._call("cudaEventCreate")))
        return self._events[-1]

    def record(self, event: int) -> None:
        """Put an event into the stream."""
        self._call("cudaEventRecord", event, self.stream)

    def elapsed_ms(self, before: int, after: int) -> float:
        """The time between two events that the stream has passed."""
        return float(self._call("cudaEventElapsedTime", before, after))

    def close(self) -> None:
        """Wait, then free the stream, the events and all memory."""
        self.synchronize()
        for event in self._events:
            self._call("cudaEventDestroy", event)
        self._events.clear()
        for address in list(self._device_memory):
            self.free(address)
        for address in self._host_memory:
            self._call("cudaFreeHost", address)
        self._host_memory.clear()
        self._call("cudaStreamDestroy", self.stream)

    def _copy(self, to: int, source: int, num_bytes: int, kind: str) -> None:
        kinds = self._rt.cudaMemcpyKind
        if num_bytes:
            self._call("cudaMemcpyAsync", to, source, num_bytes, getattr(kinds, kind), self.stream)

    def _call(self, name: str, *args: Any) -> Any:
        error, *values = getattr(self._rt, name)(*args)
        if int(error) != 0:
            what = str(getattr(error, "name", error))
            if what in _MEMORY_ERRORS:
                raise MachineError(
                    f"the GPU's memory is full ({name})\nlower max_batch or max_len, or free "
                    "memory on the GPU",
                    name="E_MEMORY",
                )
            raise MachineError(
                f"CUDA: {name} failed with {what}\ncheck the driver with nvidia-smi", name="E_CUDA"
            )
        return values[0] if values else None


def cuda_runtime() -> Any:
    """The module of the CUDA runtime's Python bindings. Raises MachineError (E_NO_CUDA)."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MachineError(
            f"the CUDA bindings are not installed ({error})\npip install 'la-trt[tensorrt]'",
            name="E_NO_CUDA",
        ) from None


@contextlib.contextmanager
def open_device(index: int = 0) -> Iterator[Device]:
    """The GPU for a while. Raises MachineError where there is none."""
    device = Device(cuda_runtime(), index)
    try:
        yield device
    finally:
        device.close()
