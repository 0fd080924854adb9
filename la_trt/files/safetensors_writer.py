"""Safetensors files written one tensor at a time, so that a 7B file needs little memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from la_trt.errors import MachineError
from la_trt.files.safetensors import CODES

HEADER_ALIGNMENT = 64  # the data of the first tensor starts at a multiple of this
_HUGE_PAGE = 2 << 20

Produced = NDArray[Any] | Iterable[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One tensor to write: `produce()` is called once, when its bytes are due.

    `produce` returns the array, or an iterable of arrays that are its consecutive pieces
    (any split of the flattened tensor), each with exactly `dtype`.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    produce: Callable[[], Produced]


def write_safetensors(
    path: Path,
    tensors: Iterable[TensorSource],
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write one safetensors file at `path`; memory is one produced piece at a time, and 2 MiB.

    Tensors stand in the given order, those of wider dtypes first so that each is aligned.
    `progress(done_bytes, total_bytes)` is called after every piece. Not atomic: write inside
    `atomic_directory`. Raises MachineError (E_WRITE) on a full disk, ValueError for a source
    that produces something else than it declared.
    """
    sources = sorted(tensors, key=lambda source: -np.dtype(source.dtype).itemsize)
    header = _header(sources, metadata or {})
    total = sum(_num_bytes(source) for source in sources)
    done = 0
    try:
        with open(path, "wb") as file:
            blocks = HugePageWriter(file)
            blocks.write(header)
            for source in sources:
                for num_bytes in _write_tensor(blocks, source):
                    done += num_bytes
                    if progress is not None:
                        progress(done, total)
            blocks.flush()
    except OSError as problem:
        raise MachineError(
            f"{path}: cannot be written ({problem.strerror or problem})\n"
            "free space there, or choose another directory",
            name="E_WRITE",
        ) from problem


class HugePageWriter:
    """Writes to an empty file in whole blocks of 2 MiB.

    Linux then keeps what was written in huge pages, where the file system has large folios, and a
    process that maps the file before it was read anew from the disk has them too.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._block = memoryview(bytearray(_HUGE_PAGE))
        self._used = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append contiguous bytes."""
        left = memoryview(data)
        while left:
            piece = left[: _HUGE_PAGE - self._used]
            self._block[self._used : self._used + len(piece)] = piece
            self._used += len(piece)
            left = left[len(piece) :]
            if self._used == _HUGE_PAGE:
                self.flush()

    def flush(self) -> None:
        """Write what is left; the last call."""
        self._file.write(self._block[: self._used])
        self._used = 0


def _num_bytes(source: TensorSource) -> int:
    return math.prod(source.shape) * np.dtype(source.dtype).itemsize


def _header(sources: list[TensorSource], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    position = 0
    for source in sources:
        dtype = np.dtype(source.dtype)
        if dtype not in CODES:
            raise ValueError(f"tensor {source.name!r}: dtype {dtype} has no safetensors code")
        if source.name in entries:
            raise ValueError(f"tensor {source.name!r} stands twice")
        end = position + _num_bytes(source)
        shape = [int(size) for size in source.shape]
        entries[source.name] = {
            "dtype": CODES[dtype],
            "shape": shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: HugePageWriter, source: TensorSource) -> Iterator[int]:
    produced = source.produce()
    if isinstance(produced, np.ndarray):
        if produced.shape != source.shape:
            raise ValueError(
                f"tensor {source.name!r}: declared shape {source.shape}, produced {produced.shape}"
            )
        produced = [produced]
    left = _num_bytes(source)
    for piece in produced:
        if piece.dtype != source.dtype:
            raise ValueError(
                f"tensor {source.name!r}: declared {source.dtype}, produced {piece.dtype}"
            )
        num_bytes = piece.nbytes
        left -= num_bytes
        if left < 0:
            break
        file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        del piece  # before the next one is made
        yield num_bytes
    if left:
        difference = "fewer" if left > 0 else "more"
        raise ValueError(
            f"tensor {source.name!r}: produced {abs(left)} bytes {difference} than declared"
        )
