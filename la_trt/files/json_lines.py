"""What files of JSON lines share that a killed run goes on with: durable lines, same settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from la_trt.errors import UsageError
from la_trt.files.atomic import write_errors

AFRESH = "choose another --output, or start afresh with --no-resume"


def dump_line(value: Mapping[str, Any], *, errors: str = "replace") -> bytes:
    """One line; `errors`: of text that is no Unicode, as in `str.encode`."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    return line.encode("utf-8", errors)


def append_durably(descriptor: int, path: Path, data: bytes) -> None:
    """Nothing; the bytes are on disk. Raises MachineError E_WRITE, which names `path`."""
    with write_errors(path):
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)


def check_same(output: Path, before: Any, now: Mapping[str, Any]) -> None:
    """Raise UsageError E_RESUME where a run was begun with other settings than `now`."""
    for name, was, wanted in differences(before, json.loads(dump_line(now))):
        raise UsageError(
            f"{output}: was begun with {name} {_short(was)}, now {_short(wanted)}\n{AFRESH}",
            name="E_RESUME",
        )


def differences(a: Any, b: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Where two JSON values differ: dotted name, value in `a`, value in `b`."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            found
            for key in dict.fromkeys([*a, *b])
            for found in differences(a.get(key), b.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if a == b else [(name or "settings", a, b)]


def _short(value: Any) -> str:
    return json.dumps(value)[:60]
