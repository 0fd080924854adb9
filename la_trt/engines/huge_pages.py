"""Huge pages behind the weights that a runtime allocated: decoding reads them faster.

A decode step reads every weight once. With pages of 4 KiB a good part of the time goes into
finding them; ONNX Runtime gives no say in how its memory is backed, but the kernel can be asked
afterwards. Linux alone; where the kernel refuses, pages stay as they are.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HUGE_PAGE_BYTES = 2 << 20
MIN_REGION_BYTES = 32 << 20
_MAPS = Path("/proc/self/maps")
_MADV_COLLAPSE = 25  # Linux 6.1: the pages there are become huge ones at once

Region = tuple[int, int]


class HugePages:
    """Anonymous memory mapped inside `collecting()`, moved to huge pages by a thread.

    `collapsed_bytes`: moved so far; it falls short of `region_bytes` where parts of a region
    were never touched or the kernel refused. The memory's owner may unmap it meanwhile.
    """

    def __init__(self) -> None:
        self.region_bytes = 0
        self.collapsed_bytes = 0
        self._thread: threading.Thread | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """What the block maps, in regions of at least 32 MiB, is moved once it has ended."""
        before = anonymous_regions()
        yield
        regions = [
            region
            for region in subtract(anonymous_regions(), before)
            if region[1] - region[0] >= MIN_REGION_BYTES
        ]
        self.region_bytes = sum(stop - start for start, stop in regions)
        if regions:
            self._thread = threading.Thread(target=self._collapse, args=(regions,), daemon=True)
            self._thread.start()

    def wait(self) -> int:
        """The bytes on huge pages, once everything was tried."""
        if self._thread is not None:
            self._thread.join()
        return self.collapsed_bytes

    def _collapse(self, regions: list[Region]) -> None:
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for start, stop in regions:
            start = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
            stop = stop // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
            # One by one: a call for several fails where one was never touched, though others moved.
            for page in range(start, stop, HUGE_PAGE_BYTES):
                if libc.madvise(page, HUGE_PAGE_BYTES, _MADV_COLLAPSE) == 0:
                    self.collapsed_bytes += HUGE_PAGE_BYTES


def anonymous_regions() -> list[Region]:
    """The writable private mappings of this process that are no file's, in order of address.

    Stacks are left out; the heap is in: an allocator takes all but the largest blocks from it.
    """
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    fields = (line.split() for line in lines)
    spans = [f[0].split("-") for f in fields if f[1] == "rw-p" and f[5:] in ([], ["[heap]"])]
    return [(int(start, 16), int(stop, 16)) for start, stop in spans]


def subtract(regions: list[Region], covered: list[Region]) -> list[Region]:
    """The parts of `regions` that `covered` leaves; both in order and without overlap."""
    left: list[Region] = []
    for start, stop in regions:
        for low, high in covered:
            if low < stop and high > start:
                if low > start:
                    left.append((start, low))
                start = max(start, high)
        if start < stop:
            left.append((start, stop))
    return left
