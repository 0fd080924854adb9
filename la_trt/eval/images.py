"""The image a row names or holds: a file, bytes, base64, or a struct of these."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from la_trt.eval.rows import RowError

_MAX_NAME = 255
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # PNG, JPEG, GIF, WebP


def image_of(value: Any, directory: Path, field: str = "image") -> Path | bytes:
    """A file below `directory` that exists, or encoded bytes. Raises RowError.

    Taken: a file name; base64, as a data URL or plain; bytes; and the `{"bytes", "path"}` of
    Hugging Face exports.
    """
    if isinstance(value, Mapping):
        inner = value.get("bytes")
        return image_of(value.get("path") if inner is None else inner, directory, field)
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not value:
            raise RowError(f"{field}: empty")
        return bytes(value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"no {field}")
    value = value.strip()
    if value.startswith("data:"):
        return _decoded(value.partition(",")[2], field)
    if len(value) > _MAX_NAME or value.startswith(_BASE64_STARTS):
        return _decoded(value, field)
    return file_below(directory, value, field)


def file_below(directory: Path, name: str, field: str = "image") -> Path:
    """The existing file of that name below `directory`. Raises RowError."""
    path = directory / name
    root = directory.resolve()
    try:
        inside, there = path.resolve().is_relative_to(root), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, no text, links in a circle
        reason = error.strerror if isinstance(error, OSError) else "no name of a file"
        raise RowError(f"{field}: {name[:80]!r}: {reason}") from None
    if not inside:
        raise RowError(f"{field}: {name[:80]!r} leads out of {directory}")
    if not there:
        raise RowError(f"{field}: no file {name[:80]!r} in {directory}")
    return path


def _decoded(text: str, field: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RowError(f"{field}: neither a file name nor base64") from None
    if not data:
        raise RowError(f"{field}: empty")
    return data
