"""The CUDA kernels on the emulated thread model: right, and wrong without any one barrier."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda import emulated
from tests.cuda.mutants import MUTANTS, ORDINARY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(emulated.missing()), reason=f"{emulated.missing()} is not installed"),
]

# Barriers that the emulation cannot miss, by the statement after or before them. Matrix loads
# and shuffles are rendezvous there, and every lane has read when they end; the memory model
# of the device promises no order without the barrier.
UNNOTICED = {
    "attention_decode.cu": (
        "sync_warp();  // before the next copy into this stage",
        "sync_warp();  // every lane has read the tile that its sums overwrite",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    emulated.build()


WITHOUT_BARRIERS = ("kv_reinject", "rope_write_kv")
each_group = pytest.mark.parametrize(
    ("program", "group"), emulated.PROGRAMS, ids=emulated.PROGRAM_IDS
)


@each_group
@pytest.mark.parametrize("seed", [0, 1000])
def test_the_kernels_equal_their_references(program: Path, group: str, seed: int) -> None:
    done = emulated.run(f"{group}_", "--seed", str(seed), program=program)
    assert done.returncode == 0, done.stdout[-4000:]


@each_group
def test_every_barrier_is_needed(program: Path, group: str) -> None:
    """Each synchronisation that is left out makes a test fail."""
    sites = emulated.sites(group, program)
    assert bool(sites) == (group not in WITHOUT_BARRIERS)
    needed = [site for site in sites if _text(site) not in UNNOTICED.get(_file(site), ())]
    in_doubt = [site for site in needed if not _excused(program, group, site)]
    assert [site for site in in_doubt if not _noticed(program, group, site)] == []


def _noticed(program: Path, group: str, site: str) -> bool:
    efforts = ("1", "4")
    return any(
        emulated.run(
            f"{group}_", "--stop", "--effort", e, "--without", site, program=program
        ).returncode
        for e in efforts
    )


def _file(site: str) -> str:
    return site.split(":")[0]


def _text(site: str) -> str:
    name, line = site.split(":")
    return (emulated.SOURCE / name).read_text().splitlines()[int(line) - 1].strip()


def _excused(program: Path, group: str, site: str) -> bool:
    # Prefill combines few splits, all by the first warp: decode is where this one matters.
    between_reductions = _file(site) == "attention_finish.cuh" and _text(site) == "sync_threads();"
    return (
        group == "attention_prefill"
        and between_reductions
        and _noticed(program, "attention_decode", site)
    )


@pytest.mark.parametrize("number", ORDINARY)
def test_wrong_edits_are_noticed(number: int, tmp_path: Path) -> None:
    assert MUTANTS[number].survives(tmp_path) == ""
