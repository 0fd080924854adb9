"""Builds and runs the CUDA kernels' tests on the emulated thread model."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SOURCE = CSRC / "kernels" / "cuda"
BUILD = ROOT / "build" / "cuda"
PROGRAM = BUILD / "latrt_cuda_tests"
CALLS = BUILD / "liblatrt_emulated_calls.so"  # the library's calls, their kernels emulated
TURING = BUILD / "latrt_cuda_tests_turing"  # the kernels that differ on capability 7.5
TIMEOUT_S = 600

# The tests' names begin with these; each with the kernels that it runs.
GROUPS = (
    "attention_decode",
    "attention_prefill",
    "attention_vision",
    "kv_reinject",
    "mass_add",
    "rope_write_kv",
    "route_select",
    "sample",
)
TURING_GROUPS = GROUPS[:3]
PROGRAMS = tuple((PROGRAM, g) for g in GROUPS) + tuple((TURING, g) for g in TURING_GROUPS)
PROGRAM_IDS = tuple(f"{p.name.removeprefix('latrt_cuda_tests')}{g}" for p, g in PROGRAMS)


def missing() -> str:
    """What is not here to build with, or nothing."""
    compilers = [c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c]
    if not any(shutil.which(c) for c in compilers):
        return "a C++ compiler"
    return next((tool for tool in ("cmake", "nvcc") if not shutil.which(tool)), "")


def build(*targets: str) -> None:
    """The test programs, or `targets`, compiled anew where a source changed; one process at a
    time.
    """
    wanted = targets or (PROGRAM.name, TURING.name)
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["cmake", "-S", str(SOURCE), "-B", str(BUILD)],
            ["cmake", "--build", str(BUILD), "--parallel", "2", "--target", *wanted],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def run(*args: str, program: Path = PROGRAM) -> subprocess.CompletedProcess[str]:
    """The finished test program."""
    command = [str(program), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)


def sites(group: str, program: Path = PROGRAM) -> list[str]:
    """Every synchronisation, "file:line", that the tests of a group pass."""
    output = run(f"{group}_", "--sites", program=program).stdout
    return [line.split()[1] for line in output.splitlines() if line.startswith("site ")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One wrong edit: in `file` of the kernels `old`, found once, becomes `new`.

    `kernel` is the source that is compiled with it, `group` the tests that must fail.
    """

    file: str
    old: str
    new: str
    kernel: str
    group: str
    program: Path = PROGRAM

    def survives(self, folder: Path) -> str:
        """Nothing where the tests fail; otherwise what they printed."""
        text = (SOURCE / self.file).read_text()
        assert text.count(self.old) == 1, f"{self.file}: {text.count(self.old)} times {self.old!r}"
        overlay = folder / "kernels" / "cuda"
        overlay.mkdir(parents=True)
        for name in {self.file, f"{self.kernel}.cu"}:
            shutil.copy(SOURCE / name, overlay / name)
        (overlay / self.file).write_text(text.replace(self.old, self.new))
        entries = json.loads((BUILD / "compile_commands.json").read_text())
        ours = f"/{self.program.name}.dir/"
        entry = next(
            e
            for e in entries
            if e["file"] == str(SOURCE / f"{self.kernel}.cu") and ours in e["command"]
        )
        command = entry["command"].replace(f"-I{CSRC}", f"-I{folder} -I{CSRC}")
        command = command.replace(entry["file"], str(overlay / f"{self.kernel}.cu"))
        arguments = [a for a in command.split() if not a.startswith("-O")]
        arguments[arguments.index("-o") + 1] = str(folder / "mutant.o")
        _check(arguments, BUILD)
        objects = sorted((BUILD / "CMakeFiles" / f"{self.program.name}.dir").rglob("*.o"))
        others = [str(o) for o in objects if o.name != f"{self.kernel}.cu.o"]
        program = folder / "mutant"
        # First, so that its copy of a template that other kernels share is the one linked.
        _check([arguments[0], str(folder / "mutant.o"), *others, "-o", str(program)], BUILD)
        done = run(f"{self.group}_", "--stop", "--effort", "3", program=program)
        return done.stdout if done.returncode == 0 else ""


def _check(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
