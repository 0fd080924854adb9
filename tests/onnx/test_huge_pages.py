"""Huge pages behind memory that was mapped: which regions, and that contents stay."""

from __future__ import annotations

import mmap
import platform

import numpy as np
import pytest

from la_trt.engines.huge_pages import (
    HUGE_PAGE_BYTES,
    MIN_REGION_BYTES,
    HugePages,
    anonymous_regions,
    subtract,
)


@pytest.mark.parametrize(
    ("regions", "covered", "left"),
    [
        ([(0, 10)], [], [(0, 10)]),
        ([(0, 10)], [(0, 10)], []),
        ([(0, 10)], [(3, 5)], [(0, 3), (5, 10)]),
        ([(0, 10)], [(0, 2), (4, 6), (9, 12)], [(2, 4), (6, 9)]),
        ([(0, 10), (20, 30)], [(5, 25)], [(0, 5), (25, 30)]),
        ([(5, 8)], [(0, 5), (8, 9)], [(5, 8)]),
    ],
)
def test_what_is_left_of_regions(
    regions: list[tuple[int, int]],
    covered: list[tuple[int, int]],
    left: list[tuple[int, int]],
) -> None:
    assert subtract(regions, covered) == left


@pytest.mark.skipif(platform.system() != "Linux", reason="Linux alone has these maps")
def test_new_memory_is_found_and_keeps_its_contents() -> None:
    pages, size = HugePages(), 2 * MIN_REGION_BYTES
    with pages.collecting():
        block = anonymous(size)
        data = np.frombuffer(block, np.uint64)
        data[:] = np.arange(data.size)
    assert pages.region_bytes >= size
    moved = pages.wait()
    assert moved <= pages.region_bytes and moved % HUGE_PAGE_BYTES == 0
    np.testing.assert_array_equal(data, np.arange(data.size))
    assert_backed(moved, data)


@pytest.mark.skipif(platform.system() != "Linux", reason="Linux alone has these maps")
def test_a_page_never_touched_does_not_hide_that_others_moved() -> None:
    pages, size = HugePages(), 2 * MIN_REGION_BYTES
    with pages.collecting():
        block = anonymous(size)
        data = np.frombuffer(block, np.uint8)
        hole = size // 2
        data[:hole] = 1
        data[hole + 2 * HUGE_PAGE_BYTES :] = 1
    moved = pages.wait()
    assert_backed(moved, data)
    assert moved < size - HUGE_PAGE_BYTES


def test_small_and_earlier_memory_is_left_alone() -> None:
    earlier = anonymous(2 * MIN_REGION_BYTES)
    earlier[:] = b"\1" * len(earlier)
    pages = HugePages()
    with pages.collecting():
        small = anonymous(HUGE_PAGE_BYTES)
        small[0] = 1
    assert pages.wait() == 0 == pages.region_bytes


def test_regions_are_those_of_this_process() -> None:
    if platform.system() != "Linux":
        assert anonymous_regions() == []
        return
    block = np.ones(MIN_REGION_BYTES, np.uint8)
    inside = [r for r in anonymous_regions() if r[0] <= block.ctypes.data < r[1]]
    assert len(inside) == 1


def anonymous(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def assert_backed(moved: int, data: np.ndarray) -> None:
    """A kernel with MADV_COLLAPSE moved some of it; the others left every page where it was."""
    backed = _huge_page_bytes(data.ctypes.data)
    assert (moved > 0) == (backed > 0), f"moved {moved}, backed {backed}"


def _huge_page_bytes(address: int) -> int:
    inside = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            head = line.split(None, 1)[0]
            if "-" in head and not head.endswith(":"):
                start, stop = (int(x, 16) for x in head.split("-"))
                inside = start <= address < stop
            elif inside and head == "AnonHugePages:":
                return int(line.split()[1]) * 1024
    return 0
