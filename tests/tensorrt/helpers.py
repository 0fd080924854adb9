"""Engines over the fake GPU, and what the tests of real builds need."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from build_engines.decoder import write_decoder
from build_engines.layers import Target, WeightSource
from build_engines.progress import Progress
from build_engines.tensorrt.profiles import decoder_profiles, vision_profiles
from build_engines.vision import write_vision
from la_trt.bindings import decoder_inputs, decoder_outputs, vision_inputs, vision_outputs
from la_trt.config import ModelConfig
from la_trt.engines.tensorrt import TensorRTEngine
from la_trt.engines.tensorrt_calls import KernelCalls
from la_trt.engines.tensorrt_library import PluginLibrary, TensorRT
from la_trt.engines.tensorrt_record import RECORD, EngineFile, EngineRecord
from la_trt.files.bundle import Bundle, BundleLimits
from la_trt.files.manifest import FileEntry, Manifest
from tests.cuda import emulated
from tests.tensorrt.fake_cuda import FakeCuda
from tests.tensorrt.fake_trt import FakeCalls, FakeModule, write_fake_plan

SM = 89
MAX_PIXELS = 1 << 20
PLUGIN_BYTES = b"the plugin library"


def fake_bundle(
    config: ModelConfig,
    weights: WeightSource,
    path: Path,
    *,
    max_batch: int = 4,
    max_len: int = 2048,
    chunk: int = 100,
    kv_dtype: str = "float32",
) -> Bundle:
    """A bundle whose plans run the very graphs that TensorRT gets, in float32."""
    none = Progress(None, 0)
    path.mkdir(parents=True, exist_ok=True)
    (path / "plugins.so").write_bytes(PLUGIN_BYTES)
    shared: dict[str, Any] = {"quant": "none", "block_size": 32, "progress": none}
    write_vision(path / "vision.onnx", config, weights, **shared, target=Target(portable=True))
    target = Target(portable=True, kv_dtype=kv_dtype)
    write_decoder(path / "decoder.onnx", config, weights, **shared, target=target)
    profiles = {
        "vision": vision_profiles(config, max_pixels=MAX_PIXELS),
        "decoder": decoder_profiles(
            config,
            max_batch=max_batch,
            max_len=max_len,
            chunk=chunk,
            quant="none",
            kv_dtype=kv_dtype,
        ),
    }
    tables = {
        "vision": (vision_inputs(config), vision_outputs(config)),
        "decoder": (
            decoder_inputs(config, kv_dtype=kv_dtype),
            decoder_outputs(config, kv_dtype=kv_dtype),
        ),
    }
    files = []
    for graph, table in tables.items():
        name = f"tensorrt/sm{SM}/{graph}.engine"
        unit = config.vision.spatial_merge_size**2
        write_fake_plan(path / name, path / f"{graph}.onnx", *table, profiles[graph], unit)
        files.append(EngineFile(graph=graph, sm=SM, path=name, profiles=profiles[graph]))
    record = EngineRecord(
        runtime="tensorrt_rtx",
        version=FakeModule.__version__,
        plugin_sha256=hashlib.sha256(PLUGIN_BYTES).hexdigest(),
        dtype="float32",
        kv_dtype=kv_dtype,
        quant="none",
        max_batch=max_batch,
        prefill_chunk=chunk,
        engines=tuple(files),
    )
    (path / RECORD).write_bytes(record.render())
    listed = [f for f in path.rglob("*") if f.is_file()]
    manifest = Manifest(
        la_trt_version="test",
        config=config,
        tags={},
        limits=BundleLimits(max_model_len=max_len, min_pixels=1, max_pixels=MAX_PIXELS),
        quant="none",
        request={},
        files=tuple(
            FileEntry(f.relative_to(path).as_posix(), f.stat().st_size, "") for f in listed
        ),
    )
    return Bundle(path, manifest)


def fake_engine(
    bundle: Bundle, *, cuda: FakeCuda | None = None, calls: Any = FakeCalls, **options: Any
) -> tuple[TensorRTEngine, FakeCuda, FakeModule]:
    """The engine of a `fake_bundle`, and the fakes under it."""
    cuda = cuda or FakeCuda(sm=SM)
    module = FakeModule(cuda)
    engine = TensorRTEngine(
        bundle,
        plugins=bundle.path / "plugins.so",
        trt=TensorRT("tensorrt_rtx", module),
        runtime=cuda,
        calls=calls(cuda),
        **options,
    )
    return engine, cuda, module


def why_no_emulation() -> str:
    """What is missing to compile the emulated kernels, or ''."""
    return emulated.missing()


class EmulatedCalls:
    """The kernels of the plugin library on the emulated thread model, over `FakeCuda`'s memory.

    The same functions, through the same ctypes, as on a GPU; only addresses are translated, and
    the work waits in the fake stream. Float32 caches have no kernel. `launched` counts.
    """

    def __init__(self, cuda: FakeCuda) -> None:
        emulated.build("latrt_emulated_calls")
        self._cuda = cuda
        self._calls = KernelCalls(PluginLibrary(emulated.CALLS, ""))
        self.launched = {"sample": 0, "kv_reinject": 0}

    def sample(self, logits: int, *, batch: int, vocab_size: int, stream: int, **at: int) -> None:
        assert stream == self._cuda.stream

        def work() -> None:
            self.launched["sample"] += 1
            here = {name: self._host(address) for name, address in at.items()}
            self._calls.sample(
                self._host(logits), batch=batch, vocab_size=vocab_size, stream=0, **here
            )

        self._cuda.put("sample", work)

    def kv_reinject(
        self,
        keys: list[int],
        values: list[int],
        scales: list[int],
        source_index: int,
        cos: int,
        sin: int,
        *,
        stream: int,
        **sizes: Any,
    ) -> None:
        assert stream == self._cuda.stream

        def work() -> None:
            self.launched["kv_reinject"] += 1
            caches = [[self._host(a) for a in some] for some in (keys, values, scales)]
            tables = [self._host(a) for a in (source_index, cos, sin)]
            self._calls.kv_reinject(*caches, *tables, stream=0, **sizes)

        self._cuda.put("kv_reinject", work)

    def _host(self, address: int) -> int:
        return int(self._cuda.memory(address, 1).ctypes.data)


def emulated_calls(cuda: FakeCuda) -> EmulatedCalls:
    """The emulated kernels over the memory of `cuda`."""
    return EmulatedCalls(cuda)


def with_record(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with fields of its engine record changed."""
    from la_trt.engines.tensorrt_record import read_record

    record = replace(read_record(bundle), **changes)
    (bundle.path / RECORD).write_bytes(record.render())
    return bundle


def why_no_build() -> str:
    """What is missing for a build of real engines, or ''."""
    if find_spec("tensorrt_rtx_bindings") is None:
        return "tensorrt-rtx-cu13-bindings is not installed"
    if find_spec("kernel_lens") is None:
        return "kernel-lens, which has the TensorRT headers, is not installed"
    for tool in ("cmake", "g++", "nvcc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return ""


def headers() -> Path:
    """The directory of NvInferRuntime.h."""
    spec = find_spec("kernel_lens")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "include" / "tensorrt"


@cache
def plugins_without_kernels(directory: Path) -> Path:
    """The plugin library without kernels and the alias beside it, built in `directory`."""
    source = Path(__file__).parents[2] / "csrc" / "plugins"
    given = ["-DLATRT_PLUGIN_KERNELS=OFF", f"-DLATRT_TENSORRT_INCLUDE={headers()}"]
    quiet: dict[str, Any] = {"check": True, "capture_output": True, "env": os.environ}
    subprocess.run(["cmake", "-S", source, "-B", directory, *given], **quiet)
    subprocess.run(["cmake", "--build", directory], **quiet)
    shutil.copy(directory / "liblatrt_rtx_alias.so", directory / "_tensorrt_rtx_alias.so")
    return directory / "liblatrt_plugins.so"
