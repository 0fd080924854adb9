"""The CUDA kernels on a GPU: their references, compute-sanitizer, times. Has not run yet.

The program is that of the emulated tests, compiled for the device. Times are printed beside the
roofline's floors (`make test-gpu` shows them), not judged.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import roofline
from benchmarks.make_3b import shape_3b
from la_trt.engines.cuda import Device, open_device
from la_trt.engines.cuda_timing import StageTimer
from la_trt.engines.tensorrt_calls import KernelCalls
from la_trt.engines.tensorrt_library import plugin_library
from tests.cuda import emulated
from tests.gpu.test_tensorrt import REASON

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]
PROGRAM = emulated.BUILD / "latrt_cuda_device_tests"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
RUNS, WARM = 200, 20


@pytest.fixture(scope="module")
def program() -> Path:
    configure = ["cmake", "-S", emulated.SOURCE, "-B", emulated.BUILD, "-DLATRT_CUDA_LIBRARY=ON"]
    subprocess.run(configure, check=True, capture_output=True)
    build = ["cmake", "--build", emulated.BUILD, "--parallel", "4", "--target", PROGRAM.name]
    subprocess.run(build, check=True, capture_output=True)
    return PROGRAM


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("group", emulated.GROUPS)
@pytest.mark.parametrize("seed", [0, 1000])
def test_the_kernels_equal_their_references(group: str, seed: int, program: Path) -> None:
    done = emulated.run(f"{group}_", "--seed", str(seed), "--effort", "10", program=program)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not installed"
)
@pytest.mark.parametrize("tool", TOOLS)
def test_compute_sanitizer_finds_nothing(tool: str, program: Path) -> None:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.fixture
def device() -> Iterator[Device]:
    with open_device() as found:
        yield found


def report(name: str, device: Device, timer: StageTimer, work: roofline.Work) -> None:
    """Print the mean time beside the floor on each GPU of the table."""
    device.synchronize()
    timer.collect()
    stage = timer.stages["timed"]
    mean_us = stage.total_ms * 1e3 / stage.num_runs
    floors = ", ".join(f"{g.name} {work.floor_us(g):.1f}" for g in roofline.GPUS)
    print(f"\n{name}: {mean_us:.1f} µs on SM {device.sm}; floors in µs: {floors}")
    assert mean_us > 0


def test_time_of_kv_reinject(device: Device) -> None:
    """256 tokens of the 3B shape, all layers, float16."""
    text, capacity, count = shape_3b().text, 4096, 256
    calls, timer = KernelCalls(plugin_library()), StageTimer(device)
    slot_bytes = text.num_key_value_heads * capacity * text.head_dim * 2
    caches = [device.malloc(slot_bytes) for _ in range(2 * text.num_hidden_layers)]
    for cache in caches:
        device.clear(cache, slot_bytes)
    host = device.host_bytes(8 * count)
    host.view(np.int64)[:] = np.arange(count)
    indices, angles = device.malloc(8 * count), device.malloc(4 * text.head_dim)
    device.upload(indices, host)
    device.clear(angles, 4 * text.head_dim)
    for run in range(WARM + RUNS):
        with timer.stage("timed" if run >= WARM else "warm"):
            calls.kv_reinject(
                caches[0::2],
                caches[1::2],
                [],
                indices,
                angles,
                angles,
                kv_dtype="float16",
                num_kv_heads=text.num_key_value_heads,
                head_dim=text.head_dim,
                capacity=capacity,
                slot=0,
                num_tokens=count,
                first=2048,
                stream=device.stream,
            )
    report("kv_reinject of 256", device, timer, roofline.kv_reinject(shape_3b().text, count, 16))


def test_time_of_sample(device: Device) -> None:
    """One row of the 3B vocabulary, top-k 50 and top-p 0.9."""
    vocab = shape_3b().text.vocab_size
    calls, timer = KernelCalls(plugin_library()), StageTimer(device)
    sizes = {"uniform": 8, "temperature": 4, "top_k": 4, "top_p": 4, "banned": 8}
    values = {
        "uniform": np.float64(0.5),
        "temperature": np.float32(1),
        "top_k": np.int32(50),
        "top_p": np.float32(0.9),
        "banned": np.int64(-1),
    }
    at = {name: device.malloc(16) for name in (*sizes, "token", "logprob")}
    for name, value in values.items():
        host = device.host_bytes(sizes[name])
        host.view(value.dtype)[0] = value
        device.upload(at[name], host)
    logits, host = device.malloc(4 * vocab), device.host_bytes(4 * vocab)
    host.view(np.float32)[:] = np.random.default_rng(0).standard_normal(vocab) * 3
    device.upload(logits, host)
    for run in range(WARM + RUNS):
        with timer.stage("timed" if run >= WARM else "warm"):
            calls.sample(logits, **at, batch=1, vocab_size=vocab, stream=device.stream)
    report("sample", device, timer, roofline.sample(vocab))
