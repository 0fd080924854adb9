"""The C++ built by CMake in build/csrc, kept between runs so that only the first one compiles."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "csrc"


def missing() -> str:
    """What is not here to build with, or nothing."""
    compilers = [c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c]
    if not any(shutil.which(c) for c in compilers):
        return "a C++ compiler"
    return "" if shutil.which("cmake") else "cmake"


needs_cpp = pytest.mark.skipif(bool(missing()), reason=f"{missing()} is not installed")


def run(*command: object, cwd: Path | None = None) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def build(*targets: str) -> Path:
    """The build folder with these targets (all of them by default) up to date."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("cmake", "-S", ROOT, "-B", BUILD, "-DLATRT_PYTHON=OFF", "-DLATRT_TESTS=ON")
        chosen = ["--target", *targets] if targets else []
        run("cmake", "--build", BUILD, "--parallel", "2", *chosen)
    return BUILD
