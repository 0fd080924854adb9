"""The CUDA kernels on a GPU: their references, compute-sanitizer, times. Has not run yet.

The tests are those of the emulation, compiled for the device. Times are printed beside the
roofline's floors (`make test-gpu` shows them), not judged.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import roofline
from benchmarks.make_3b import shape_3b
from tests.cuda import emulated
from tests.gpu.test_tensorrt import REASON

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]
PROGRAM, TIMES = "latrt_cuda_device_tests", "latrt_cuda_time_kernels"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


def built(name: str) -> Path:
    """The program, compiled for the device."""
    configure = ["cmake", "-S", emulated.SOURCE, "-B", emulated.BUILD, "-DLATRT_CUDA_LIBRARY=ON"]
    subprocess.run(configure, check=True, capture_output=True)
    build = ["cmake", "--build", emulated.BUILD, "--parallel", "4", "--target", name]
    subprocess.run(build, check=True, capture_output=True)
    return emulated.BUILD / name


@pytest.fixture(scope="module")
def program() -> Path:
    return built(PROGRAM)


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


def test_times_beside_the_floors() -> None:
    """The 3B shape, float16: the median time of each kernel, its spread, the floors."""
    done = subprocess.run([str(built(TIMES))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    table = roofline.rows(shape_3b(), kv_len=4096, num_visual=1024, kv_bits=16, weight_bits=16)
    times = {row["kernel"]: row for row in map(json.loads, done.stdout.splitlines())}
    print(done.stderr.strip())
    for name, row in times.items():
        floors = ", ".join(f"{g.name} {table[name].floor_us(g):.1f}" for g in roofline.GPUS)
        spread = f"{row['min_us']:.1f} to {row['max_us']:.1f}"
        print(f"{name}: {row['median_us']:.1f} µs ({spread}); floors in µs: {floors}")
    assert set(times) == set(roofline.kernels(table))
    assert all(0 < r["min_us"] <= r["median_us"] <= r["max_us"] for r in times.values())
