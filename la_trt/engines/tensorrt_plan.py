"""One deserialised plan: checked against the table of bindings, and its execution contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from la_trt.bindings import Binding
from la_trt.engines.cuda import Device
from la_trt.engines.tensorrt_library import TensorRT
from la_trt.engines.tensorrt_record import EngineFile, Shape
from la_trt.errors import BundleError, MachineError

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "FP8": "float8_e4m3fn",
}


class Plan:
    """A plan in GPU memory. All its contexts share one block of scratch memory and one stream.

    Raises BundleError (E_PLAN) for a plan with other bindings, profiles or a cache that is copied,
    MachineError (E_MEMORY) where it does not fit.
    """

    def __init__(
        self,
        trt: TensorRT,
        device: Device,
        path: Path,
        file: EngineFile,
        inputs: Sequence[Binding],
        outputs: Sequence[Binding],
    ) -> None:
        self.path = path
        self.profiles = file.profiles
        self._trt, self._device = trt, device
        self._log = trt.module.Logger(trt.module.Logger.ERROR)
        self._runtime = trt.module.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            self._refuse(f"{trt.name} {trt.version} cannot read the plan on this GPU")
        self._check_bindings(inputs, outputs)
        self._check_profiles(inputs)
        sizes = [
            int(self._engine.get_device_memory_size_for_profile_v2(i))
            for i in range(len(self.profiles))
        ]
        self._scratch_bytes = max(sizes)
        self._scratch = device.malloc(self._scratch_bytes)

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that admits the shapes. Asserts that there is one."""
        for i, profile in enumerate(self.profiles):
            if profile.admits(shapes):
                return i
        raise AssertionError(f"{self.path.name}: no profile for {dict(shapes)}")

    def context(self, profile: int) -> Any:
        """A new execution context on the shared scratch memory, its profile chosen."""
        strategy = self._trt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise MachineError(
                f"{self.path.name}: no execution context\nfree memory on the GPU", name="E_MEMORY"
            )
        context.set_device_memory(self._scratch, self._scratch_bytes)
        if not context.set_optimization_profile_async(profile, self._device.stream):
            self._refuse(f"profile {self.profiles[profile].name!r} cannot be chosen")
        return context

    def enqueue(
        self, context: Any, shapes: Mapping[str, Shape], addresses: Mapping[str, int]
    ) -> None:
        """Put one pass into the stream. `shapes`: of the inputs; `addresses`: of all bindings."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise AssertionError(f"{self.path.name}: {name} of shape {list(shape)} is refused")
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(self._device.stream):
            raise MachineError(
                f"{self.path.name}: TensorRT did not start the pass\ncheck the GPU with nvidia-smi",
                name="E_CUDA",
            )

    def close(self) -> None:
        """Give the weights back. Its contexts must be gone."""
        self._engine = self._runtime = None

    def _check_bindings(self, inputs: Sequence[Binding], outputs: Sequence[Binding]) -> None:
        engine, modes = self._engine, self._trt.module.TensorIOMode
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        expected = {b.name for b in (*inputs, *outputs)}
        if found != expected:
            self._refuse(f"binding {min(found ^ expected)!r} is in one of plan and table alone")
        for bindings, mode in ((inputs, modes.INPUT), (outputs, modes.OUTPUT)):
            for b in bindings:
                dtype = _DTYPES.get(engine.get_tensor_dtype(b.name).name, "another type")
                shape = tuple(engine.get_tensor_shape(b.name))
                fits = len(shape) == len(b.shape) and all(
                    size in (-1, dim) if isinstance(dim, int) else True
                    for size, dim in zip(shape, b.shape, strict=True)
                )
                if engine.get_tensor_mode(b.name) != mode or dtype != b.dtype or not fits:
                    self._refuse(
                        f"binding {b.name!r}: expected {b.dtype} {list(b.shape)}, "
                        f"got {dtype} {list(shape)}"
                    )
        aliased = getattr(engine, "get_aliased_input_tensor", None)
        for b in outputs:
            past = b.name.replace("present_", "past_")
            if aliased is not None and past != b.name and aliased(b.name) != past:
                self._refuse(f"output {b.name!r} does not share the memory of {past!r}")

    def _check_profiles(self, inputs: Sequence[Binding]) -> None:
        if self._engine.num_optimization_profiles != len(self.profiles):
            self._refuse(f"{self._engine.num_optimization_profiles} profiles, not as recorded")
        for i, profile in enumerate(self.profiles):
            for b in inputs:
                shapes = self._engine.get_tensor_profile_shape(b.name, i)
                if tuple(tuple(s) for s in shapes) != profile.shapes.get(b.name):
                    self._refuse(f"profile {profile.name!r}, {b.name!r}: not as recorded")

    def _refuse(self, what: str) -> NoReturn:
        raise BundleError(
            f"{self.path}: {what}\nrebuild it with la-trt build --backend tensorrt", name="E_PLAN"
        )
