"""One ONNX graph to one plan: the same code for `tensorrt` and `tensorrt_rtx`."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from build_engines.progress import ProgressCallback
from la_trt.engines.tensorrt_library import PLUGIN_NAMES, TensorRT
from la_trt.engines.tensorrt_record import Profile
from la_trt.errors import GateError, MachineError

_OUT_OF_MEMORY = ("out of memory", "outofmemory", "cudaerrormemoryallocation", "bad_alloc")


def build_plan(
    trt: TensorRT,
    path: Path,
    output: Path,
    profiles: Sequence[Profile],
    *,
    sm: int,
    timing_cache: Path | None = None,
    progress: ProgressCallback | None = None,
    stage: str = "engine",
) -> None:
    """Write the engine of the graph at `path`, for GPUs of compute capability `sm`, to `output`.

    The plugins must be registered already. `progress(stage, done, total)` follows the builder's
    outermost phase. Raises MachineError: E_MEMORY, E_TENSORRT with the builder's own words.
    """
    log = _make_log(trt.module)
    builder = trt.module.Builder(log)
    network = _parse(trt, builder, path, log)
    config = builder.create_builder_config()
    _target(trt, builder, config, sm)
    config.set_preview_feature(trt.module.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    config.profiling_verbosity = trt.module.ProfilingVerbosity.DETAILED
    for profile in profiles:
        ranges = builder.create_optimization_profile()
        for name, shapes in profile.shapes.items():
            ranges.set_shape(name, *shapes)
        config.add_optimization_profile(ranges)
    cache = _read_cache(trt, config, timing_cache)
    monitor = _make_monitor(trt.module, progress, stage)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        _refuse(trt, path, log.errors)
    if cache is not None:
        _write_cache(config, cache)
    with output.open("wb") as file:
        file.write(memoryview(plan))


def parsed_bytes(path: Path) -> bytes:
    """The graph without the functions that a plugin stands for: the parser would inline them."""
    model = onnx.load(path, load_external_data=False)
    kept = [f for f in model.functions if f.name not in PLUGIN_NAMES]
    del model.functions[:]
    model.functions.extend(kept)
    data: bytes = model.SerializeToString()
    return data


def _parse(trt: TensorRT, builder: Any, path: Path, log: Any) -> Any:
    flag = 1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.module.OnnxParser(network, log)
    if not parser.parse(parsed_bytes(path), str(path)):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        errors = [f"{e.node_operator()} {e.node_name()!r}: {e.desc()}" for e in found]
        _refuse(trt, path, errors or log.errors)
    network.name = path.stem
    return network


def _target(trt: TensorRT, builder: Any, config: Any, sm: int) -> None:
    """Build for `sm`: by name where the runtime can, else only for the GPU that is here."""
    targets = trt.sm_targets()
    if targets:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.module.ComputeCapability, f"SM{sm}"), 0)
        return
    from la_trt.engines.cuda import open_device

    with open_device() as device:
        if device.sm != sm:
            raise MachineError(
                f"{trt.name} {trt.version} builds for the GPU that is here, SM {device.sm}, "
                f"not for SM {sm}\nbuild on such a GPU, or install tensorrt_rtx",
                name="E_SM",
            )


def _refuse(trt: TensorRT, path: Path, errors: Sequence[str]) -> None:
    text = " ".join(" ".join(errors).split())
    if any(sign in text.lower() for sign in _OUT_OF_MEMORY):
        raise MachineError(
            f"{path.name}: out of memory while {trt.name} built the engine\n"
            "free memory, or lower --max-batch, --max-model-len or --max-pixels",
            name="E_MEMORY",
        )
    raise MachineError(
        f"{path.name}: {trt.name} {trt.version} builds no engine: {text[:300] or 'no reason given'}"
        "\nreport it with this message and the versions that la-trt doctor prints",
        name="E_TENSORRT",
    )


def check_plan(path: Path, *, num_plugins: int, max_bytes: int) -> None:
    """Raises GateError (E_SELF_CHECK) unless the plan holds the plugins and its weights once."""
    found = count_in_plan(path, PLUGIN_NAMES[0])
    if found < num_plugins:
        raise GateError(
            f"{path.name}: the plan names {found} of {num_plugins} attention plugins\n"
            "report it: this runtime builds the graph differently",
            name="E_SELF_CHECK",
        )
    size = path.stat().st_size
    if size > max_bytes:
        raise GateError(
            f"{path.name}: the plan has {size} bytes, at most {max_bytes} were expected\n"
            "report it: this runtime stores the weights more than once",
            name="E_SELF_CHECK",
        )


def count_in_plan(path: Path, text: str) -> int:
    """How often a plan's readable part has `text`."""
    count, start, sought = 0, 0, text.encode()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        while (start := plan.find(sought, start)) >= 0:
            count, start = count + 1, start + len(sought)
    return count


def _make_log(module: Any) -> Any:
    class Log(module.ILogger):  # type: ignore[misc]
        """Keeps the errors; the rest is the builder's own business."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                self.errors.append(message)

    return Log()


def _make_monitor(module: Any, progress: ProgressCallback | None, stage: str) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        """Follows the outermost phase. An exception must not pass through the builder."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.interrupted = False
            self.phase = ""
            self.steps = 0

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            if not parent and not self.phase:
                self.phase, self.steps = name, num_steps
                self.tell(0)

        def step_complete(self, name: str, step: int) -> bool:
            try:
                if name == self.phase:
                    self.tell(min(step + 1, self.steps))
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, name: str) -> None:
            if name == self.phase:
                self.tell(self.steps)

        def tell(self, done: int) -> None:
            if progress is not None:
                progress(stage, done, self.steps)

    return Monitor()


def _read_cache(trt: TensorRT, config: Any, path: Path | None) -> Path | None:
    """Start from the timing cache at `path`. TensorRT-RTX times nothing when it builds."""
    if path is None or trt.is_rtx:
        return None
    data = path.read_bytes() if path.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(data), False)
    return path


def _write_cache(config: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(bytes(config.get_timing_cache().serialize()))
    fresh.replace(path)
