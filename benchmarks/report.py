"""What every results file says: machine, versions, command, medians; and where it is written."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# What decides which kernels an engine has, by its name in /proc/cpuinfo.
_INSTRUCTIONS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8")
_PACKAGES = ("onnxruntime", "onnx-ir", "numpy", "torch")
CONFIDENCE = 0.95
LEAST_VALUES = 6  # fewer cannot bound a median with that confidence


def describe_machine() -> dict[str, str]:
    """CPU, its vector instructions, cores, memory, Python and library versions."""
    cpu = next((v for k, v in _pairs("/proc/cpuinfo") if k == "model name"), platform.machine())
    memory = next((v for k, v in _pairs("/proc/meminfo") if k == "MemTotal"), "? kB")
    found = {"cpu": cpu, "cores": str(os.cpu_count()), "memory": memory}
    flags = next((v.split() for k, v in _pairs("/proc/cpuinfo") if k == "flags"), [])
    if known := [name for name in _INSTRUCTIONS if name in flags]:
        found["instructions"] = " ".join(known)
    found["python"] = platform.python_version()
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """The command as a user would type it."""
    module = Path(sys.argv[0]).stem
    return f"python -m benchmarks.{module} {shlex.join(sys.argv[1:])}".rstrip()


def median_ranks(num: int) -> tuple[int, int]:
    """The two of `num` ordered values, from 0, that hold the median with 95 % confidence.

    Exact: of independent values as many as a fair coin gives lie below the median. The innermost
    pair, as far from one end as from the other; below LEAST_VALUES the outermost, which says less.
    """
    outside, below = 0.0, 0
    for rank in range(num // 2):
        outside += 2 * math.comb(num, rank) / 2**num
        if outside > 1 - CONFIDENCE:
            break
        below = rank
    return below, num - 1 - below


def median_and_bounds(values: list[float]) -> list[float]:
    """[median, low, high], the bounds by `median_ranks`; `bounds_of` says what they are."""
    ordered = sorted(values)
    low, high = median_ranks(len(ordered))
    return [statistics.median(ordered), ordered[low], ordered[high]]


def bounds_of(num: int) -> str:
    """What the bounds of a median of `num` values are, for a table's heading."""
    return "95 %" if num >= LEAST_VALUES else "least to greatest"


def publish(name: str, result: dict[str, Any], table: str, **kept: Any) -> None:
    """Write `results/<name>.json` and `results/<name>.md`, `kept` in the first alone.

    The result gains the command and the machine. The table to stderr, one JSON line to stdout.
    """
    command, machine = command_line(), describe_machine()
    result = {**result, "command": command, "machine": machine}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**result, **kept}, indent=1) + "\n")
    said = ", ".join(f"{k} {v}" for k, v in machine.items())
    (RESULTS / f"{name}.md").write_text(f"# {name}\n\n`{command}`\n\n{said}\n\n{table}\n")
    print(table, file=sys.stderr)
    print(json.dumps(result))


def memory_bytes(pid: int | str = "self") -> dict[str, int]:
    """Bytes of VmHWM (peak, mapped files included), RssAnon and RssFile of a process."""
    wanted = ("VmHWM", "RssAnon", "RssFile")
    pairs = _pairs(f"/proc/{pid}/status")
    return {k: int(v.split()[0]) * 1024 for k, v in pairs if k in wanted}


def _pairs(path: str) -> list[tuple[str, str]]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    split = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in split]
