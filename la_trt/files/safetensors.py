"""Safetensors files: read as views of one memory map, written one tensor at a time.

The format: 8 bytes of little-endian header length, a JSON header, the tensors' bytes without
gap or overlap. Everything a header says is checked before a view is made.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from la_trt.errors import CheckpointError, LookAgainError
from la_trt.files.strict_json import parse_json, show
from la_trt.limits import Limits

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
DTYPES: MappingProxyType[str, np.dtype[Any]] = MappingProxyType(
    {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": BFLOAT16,
        "I64": np.dtype("<i8"),
        "I32": np.dtype("<i4"),
        "I16": np.dtype("<i2"),
        "I8": np.dtype("i1"),
        "U64": np.dtype("<u8"),
        "U32": np.dtype("<u4"),
        "U16": np.dtype("<u2"),
        "U8": np.dtype("u1"),
        "BOOL": np.dtype("?"),
    }
)
CODES: MappingProxyType[np.dtype[Any], str] = MappingProxyType({d: c for c, d in DTYPES.items()})
DOWNLOAD_AGAIN = "download or copy the file again"
UNQUANTISED = "give the unquantised checkpoint"

_EXPONENTS: dict[str, tuple[np.dtype[Any], int]] = {
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F64": (np.dtype("<u8"), 0x7FF0 << 48),
}
_SCAN_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a header: `start` and `stop` are byte offsets into the file."""

    name: str
    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES[self.code]


class SafetensorsFile:
    """A safetensors file, read-only. Tensors are views of one shared map, never copies.

    Raises `error` (CheckpointError by default) naming the file, and the tensor where there is
    one: E_MISSING_FILE, E_UNREADABLE_FILE, E_LFS_POINTER, E_PICKLE, E_TRUNCATED,
    E_HEADER_SIZE, E_HEADER, E_DTYPE, E_OFFSETS.
    A file cut short by someone else while it is mapped ends the process (SIGBUS): replace
    files, do not rewrite them in place.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_header_bytes: int | None = None,
        error: type[LookAgainError] = CheckpointError,
        todo: str = DOWNLOAD_AGAIN,
    ) -> None:
        self.path = path
        self._error = error
        self._todo = todo
        limit = Limits().max_safetensors_header_bytes
        self._max_header = limit if max_header_bytes is None else max_header_bytes
        self._map = self._open()
        self.metadata: dict[str, str] = {}
        self._tensors = self._read_header()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """All tensor names in the order of the header."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """The entry of one tensor. KeyError when there is none."""
        return self._tensors[name]

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of the tensor (BF16 as `ml_dtypes.bfloat16`).

        The one exception: a tensor that the file places at an address its dtype cannot be read
        from (foreign writers only) comes as an aligned copy.
        """
        info = self._tensors[name]
        count = (info.stop - info.start) // info.dtype.itemsize
        flat: NDArray[Any] = np.frombuffer(self._map, info.dtype, count, info.start)
        array = flat.reshape(info.shape)
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        return array

    def prefer_huge_pages(self) -> None:
        """Ask for huge pages: fewer address translations, so the same bytes are read faster.

        The pages stay shared between processes. A system that has none for files goes on with
        small ones.
        """
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system; views stay valid and are read again."""
        info = self._tensors[name]
        self._release(info.start, info.stop)

    def non_finite(self, name: str) -> int | None:
        """The flat index of the first NaN or Inf, or None. Read in pieces of 8 MiB."""
        info = self._tensors[name]
        if info.code not in _EXPONENTS:
            return None
        kind, mask = _EXPONENTS[info.code]
        step = _SCAN_BYTES // info.dtype.itemsize
        count = (info.stop - info.start) // info.dtype.itemsize
        for first in range(0, count, step):
            start = info.start + first * info.dtype.itemsize
            bits = np.frombuffer(self._map, kind, min(step, count - first), start)
            exponents = bits & kind.type(mask)
            if int(exponents.max()) == mask:
                return first + int(np.argmax(exponents == mask))
            self._release(start, start + bits.nbytes)
        return None

    def _refuse(self, name: str, what: str, todo: str | None = None) -> NoReturn:
        raise self._error(f"{self.path}: {what}\n{todo or self._todo}", name=name)

    def _open(self) -> mmap.mmap:
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                self._refuse("E_MISSING_FILE", "not a regular file")
            with open(self.path, "rb") as file:
                self._check_magic(file.read(64))
                self._size = os.fstat(file.fileno()).st_size
                return mmap.mmap(file.fileno(), self._size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            self._refuse("E_MISSING_FILE", "no such file")
        except OSError as problem:
            what = f"cannot be read ({problem.strerror})"
            self._refuse("E_UNREADABLE_FILE", what, "check the file's permissions")

    def _check_magic(self, first: bytes) -> None:
        if first.startswith(b"version https://git-lfs"):
            self._refuse(
                "E_LFS_POINTER",
                "a git-LFS pointer, not the file itself",
                "run `git lfs pull` in that directory, or download the file again",
            )
        if first.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
            self._refuse("E_PICKLE", "a pickle, which could run code", "convert to safetensors")
        if len(first) < 8:
            self._refuse("E_TRUNCATED", f"truncated: {len(first)} bytes, no header")

    def _read_header(self) -> dict[str, TensorInfo]:
        length = int.from_bytes(self._map[:8], "little")
        if length > self._max_header:
            self._refuse(
                "E_HEADER_SIZE",
                f"header of {length} bytes, the limit is {self._max_header}",
                "check that this is a safetensors file",
            )
        if 8 + length > self._size:
            self._refuse("E_TRUNCATED", f"truncated: header of {length} bytes in {self._size}")
        text = self._map[8 : 8 + length]
        if not text.startswith(b"{"):
            self._refuse("E_HEADER", "header does not start with '{'")
        raw = parse_json(
            text,
            where=f"{self.path}: header",
            todo=self._todo,
            error=self._error,
            name="E_HEADER",
            max_bytes=self._max_header,
        )
        self.metadata = self._metadata(raw.pop("__metadata__", {}))
        tensors = {name: self._entry(name, entry, 8 + length) for name, entry in raw.items()}
        self._check_layout(tensors.values(), 8 + length)
        return tensors

    def _metadata(self, raw: Any) -> dict[str, str]:
        if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
            self._refuse("E_HEADER", "__metadata__: expected strings")
        return dict(raw)

    def _entry(self, name: str, raw: Any, base: int) -> TensorInfo:
        where = f"tensor {show(name)}"
        if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
            self._refuse("E_HEADER", f"{where}: expected dtype, shape and data_offsets")
        code, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
        if not isinstance(code, str) or code not in DTYPES:
            todo = UNQUANTISED if self._error is CheckpointError else self._todo
            self._refuse("E_DTYPE", f"{where}: dtype {show(code)} is not supported", todo=todo)
        if not isinstance(shape, list) or not all(map(_is_size, shape)) or len(shape) > 32:
            self._refuse("E_HEADER", f"{where}: shape {show(shape)} is not a list of sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
            self._refuse("E_OFFSETS", f"{where}: data_offsets {show(offsets)} are not two offsets")
        start, stop = offsets
        expected = DTYPES[code].itemsize
        for size in shape:
            expected *= size
        if stop - start != expected:
            self._refuse(
                "E_OFFSETS",
                f"{where}: {stop - start} bytes, but {code} {show(shape)} takes {show(expected)}",
            )
        return TensorInfo(name, code, tuple(shape), base + start, base + stop)

    def _check_layout(self, tensors: Iterable[TensorInfo], position: int) -> None:
        for info in sorted(tensors, key=lambda info: (info.start, info.stop)):
            where = f"tensor {show(info.name)}"
            if info.stop > self._size:
                self._refuse(
                    "E_TRUNCATED",
                    f"truncated: {where} ends at byte {info.stop} of {self._size}",
                )
            if info.start != position:
                kind = "overlaps the tensor before it" if info.start < position else "has a gap"
                self._refuse("E_OFFSETS", f"{where}: {kind} (byte {info.start}, not {position})")
            position = info.stop
        if position != self._size:
            self._refuse("E_OFFSETS", f"{self._size - position} bytes after the last tensor")

    def _release(self, start: int, stop: int) -> None:
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = stop - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, length)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
