"""A bundle of random weights, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from build_engines.build import build

BACKEND = "native" if find_spec("la_trt._native") else "onnx"


@pytest.fixture(scope="session")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("offline") / "tiny"
    build(tiny_checkpoint, path)
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Sequence[Any]], Path]:
    """Writes rows (objects, or lines as they are) to a file."""

    def write_rows(rows: Sequence[Any]) -> Path:
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write_rows


def command(bundle: Path, rows: Path, output: Path, *flags: str) -> list[str]:
    """The arguments of a short greedy batch."""
    where = ["--engine", str(bundle), "--backend", BACKEND, "--threads", "1"]
    files = ["--input", str(rows), "--output", str(output)]
    return ["batch", *where, *files, "--max-tokens", "4", *flags]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
