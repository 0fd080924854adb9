"""What ptxas reported of every kernel and target: no spill, and within the budget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cuda import emulated

TARGETS = ("75", "80", "86", "89", "90", "120")
# Registers a thread.
MAX_REGISTERS = {
    "attention_decode": 168,  # three blocks; shared memory has room for one or two
    "attention_prefill": 255,
    "attention_vision": 255,
    "finish_attention": 80,
    "kv_reinject": 64,
    "mass_add": 64,
    "rope_write_kv": 64,
    "route_select": 64,
    "sample": 64,
}
# Dynamic shared memory, in bytes, that the launches of a group may ask for. 99 KiB is all that
# a block gets on capability 8.6, 8.9 and 12.0; half of it lets two blocks run there.
MAX_SHARED = {
    "attention_decode": 80 << 10,
    "attention_prefill": 56 << 10,
    "attention_vision": 48 << 10,
    "kv_reinject": 0,
    "mass_add": 4 << 10,
    "rope_write_kv": 0,
    "route_select": 4 << 10,
    "sample": 4 << 10,
}
TURING_SHARED = 64 << 10  # all that a block gets on capability 7.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One line of a report."""

    name: str
    target: str
    registers: int
    spill_bytes: int


def parse(report: str) -> list[Kernel]:
    """Every kernel of a report of `nvcc -Xptxas -v`."""
    pattern = re.compile(
        r"Compiling entry function '(?P<symbol>\w+)' for 'sm_(?P<target>\d+)a?'"
        r".*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    kernels = []
    for found in pattern.finditer(report):
        names = [n for n in MAX_REGISTERS if f"{len(n)}{n}" in found["symbol"]]
        assert names, f"{found['symbol']}: a kernel without a budget"
        kernels.append(
            Kernel(
                name=names[-1],
                target=found["target"],
                registers=int(found["registers"]),
                spill_bytes=int(found["stores"]) + int(found["loads"]),
            )
        )
    return kernels


def with_headers(source: Path) -> set[Path]:
    """The file and the project's headers that it includes, directly or not."""
    found, left = set[Path](), [source]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            names = re.findall(r'^#include "(kernels/cuda/.*)"', file.read_text(), re.MULTILINE)
            left += [emulated.CSRC / name for name in names]
    return found


def test_a_report_is_read() -> None:
    report = """
ptxas info    : Compiling entry function '_ZN5latrt4cuda6sampleENS0_12SampleParamsE' for 'sm_90'
ptxas info    : Function properties for _ZN5latrt4cuda6sampleENS0_12SampleParamsE
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 46 registers, used 1 barriers
"""
    assert parse(report) == [Kernel(name="sample", target="90", registers=46, spill_bytes=16)]


@pytest.mark.parametrize("source", sorted(p.stem for p in emulated.SOURCE.glob("*.cu")))
def test_no_kernel_spills_or_takes_more_than_its_registers(source: str) -> None:
    report = emulated.BUILD / f"{source}.ptxas"
    compiled = emulated.BUILD / f"{source}.o"
    if not compiled.exists():
        pytest.skip(f"{source}.cu has not been compiled by nvcc here: make cuda")
    newest = max(p.stat().st_mtime for p in with_headers(emulated.SOURCE / f"{source}.cu"))
    if report.stat().st_mtime < newest:
        pytest.skip(f"{source}.ptxas is older than its sources: make cuda")
    kernels = parse(report.read_text())
    assert {k.target for k in kernels} == set(TARGETS)
    for kernel in kernels:
        assert kernel.spill_bytes == 0, kernel
        assert kernel.registers <= MAX_REGISTERS[kernel.name], kernel


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(bool(emulated.missing()), reason=f"{emulated.missing()} is not installed")
@pytest.mark.parametrize(("program", "group"), emulated.PROGRAMS, ids=emulated.PROGRAM_IDS)
def test_no_launch_asks_for_more_shared_memory_than_its_budget(program: Path, group: str) -> None:
    emulated.build()
    output = emulated.run(f"{group}_", "--shared", program=program).stdout
    most = int(next(s for s in output.splitlines() if s.startswith("shared ")).split()[1])
    turing = TURING_SHARED if program == emulated.TURING else MAX_SHARED[group]
    assert most <= min(turing, MAX_SHARED[group])
