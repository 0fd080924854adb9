"""What can be said of a machine without running a model: processor, memory, packages."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import la_trt
from la_trt.cli.source import cache_directory

Status = Literal["ok", "failed", "absent"]

# Published floors, each for an advisory or for an interface that is used.
FLOORS = {
    "numpy": "2.0",
    "pillow": "13.0.0",
    "ml_dtypes": "0.5",
    "tokenizers": "0.22",
    "jinja2": "3.1.6",
    "onnx": "1.21.0",
    "onnx-ir": "1.0",
    "onnxruntime": "1.31",
    "click": "8.2",
    "rich": "14",
    "pyyaml": "6.0.2",
    "matplotlib": "3.10",
}
# Of the extras; what tensorrt needs, its engine's check says.
OPTIONAL_FLOORS = {
    "train": {"torch": "2.10"},
    "parquet": {"pyarrow": "23.0.1"},
    "serve": {
        "fastapi": "0.130",
        "starlette": "1.3.1",
        "uvicorn": "0.40",
        "h11": "0.16",
        "pydantic": "2.11",
        "prometheus-client": "0.22",
    },
    "ray": {"ray": "2.60"},
}
_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding. `absent`: not there or too old, and not needed."""

    name: str
    status: Status
    detail: str


def machine_checks() -> list[Check]:
    """Python, processor, memory and the cache directory."""
    version = platform.python_version()
    return [
        Check(name="la-trt", status="ok", detail=la_trt.__version__),
        Check(
            name="python",
            status="ok" if sys.version_info >= (3, 11) else "failed",
            detail=f"{version} on {platform.system()} {platform.machine()}",
        ),
        Check(name="processor", status="ok", detail=processor()),
        Check(name="memory", status="ok", detail=memory()),
        _cache_check(),
    ]


def package_checks() -> list[Check]:
    """Installed versions against the floors."""
    checks = [_package(name, floor) for name, floor in FLOORS.items()]
    return checks + [
        _package(name, floor, extra=extra)
        for extra, packages in OPTIONAL_FLOORS.items()
        for name, floor in packages.items()
    ]


def processor() -> str:
    """The processor's name, the threads this process may use, its vector instructions."""
    text = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    features = [feature for feature in _FEATURES if feature in known]
    label = name[1].strip() if name else platform.processor() or platform.machine()
    threads = f"{num_threads()} thread{'s' * (num_threads() != 1)}"
    return f"{label}, {threads}, {' '.join(features) or 'no known vector extension'}"


def num_threads() -> int:
    """Threads that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> str:
    """Memory in all and available, GiB."""
    kib = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE))
    if "MemTotal" not in kib or "MemAvailable" not in kib:
        return "unknown"
    total, available = (int(kib[key]) / 2**20 for key in ("MemTotal", "MemAvailable"))
    return f"{total:.1f} GiB, {available:.1f} GiB available"


def at_least(version: str, floor: str) -> bool:
    """Whether the release numbers of `version` reach those of `floor`."""
    return _release(version) >= _release(floor)


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(n) for n in numbers[0].split(".")] if numbers else [0]
    return tuple(parts + [0] * (4 - len(parts)))


def _package(name: str, floor: str, *, extra: str = "") -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    if version and at_least(version, floor):
        return Check(name=name, status="ok", detail=f"{version} (at least {floor})")
    found = version or "not installed"
    if extra:
        detail = f"{found}; la-trt[{extra}] needs {floor} or newer"
        return Check(name=name, status="absent", detail=detail)
    return Check(name=name, status="failed", detail=f"{found}, {floor} or newer needed")


def _cache_check() -> Check:
    path = cache_directory()
    existing = next(p for p in (path, *path.parents) if p.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return Check(
        name="cache directory",
        status="ok" if writable else "failed",
        detail=f"{path}" if writable else f"{path}: cannot be written, set XDG_CACHE_HOME",
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
