"""A batch of 1,000 rows that is killed again and again ends as one that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from la_trt.cli.app import run
from tests.offline.conftest import command, records

NUM_ROWS = 1000
WAIT_S = 120.0


def killed_after(arguments: list[str], journal: Path, num_lines: int) -> bool:
    """Run the command and SIGKILL it once its journal has so many lines; False if it ended."""
    process = subprocess.Popen([sys.executable, "-m", "la_trt.cli", *arguments])
    try:
        deadline = time.monotonic() + WAIT_S
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= num_lines:
                process.send_signal(signal.SIGKILL)
                return process.wait() == -signal.SIGKILL
            assert time.monotonic() < deadline, "the journal does not grow"
            time.sleep(0.005)
        return False
    finally:
        process.kill()
        process.wait()


def rows_of(num: int, picture: Path) -> list[dict[str, Any]]:
    """Rows of which some have a picture, some a temperature, and each tenth is refused."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(num):
        row: dict[str, Any] = {"id": f"q{number}", "prompt": f"How many? {number}"}
        if number % 20 == 0:
            row["images"] = [str(picture.name)]
        if number % 3 == 0:
            row["temperature"] = rng.random() + 0.5
        if number % 10 == 9:
            row["images"] = ["gone.png"]
        rows.append(row)
    return rows


def check_every_row_once(output: Path, rows: list[dict[str, Any]]) -> None:
    found = records(output)
    assert [r["id"] for r in found] == [row["id"] for row in rows]
    refused = {r["id"] for r in found if "error" in r}
    assert refused == {row["id"] for row in rows if row.get("images") == ["gone.png"]}


def test_nothing_is_lost_or_doubled(
    bundle: Path, picture: Path, write: Callable[[Any], Path], tmp_path: Path
) -> None:
    asked = rows_of(NUM_ROWS, picture)
    rows, images = write(asked), ("--images", str(picture.parent), "--max-tokens", "2")
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert run(command(bundle, rows, whole, *images)) == 3
    journal = output.with_name(output.name + ".partial")
    for num_lines in (150, 420, 800):
        assert killed_after(command(bundle, rows, output, *images), journal, num_lines)
        assert not output.exists(), "the output stands before all rows are answered"
    assert run(command(bundle, rows, output, *images)) == 3
    check_every_row_once(output, asked)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.ray
def test_nothing_is_lost_or_doubled_on_ray(
    bundle: Path, picture: Path, write: Callable[[Any], Path], tmp_path: Path
) -> None:
    asked = rows_of(NUM_ROWS, picture)
    rows, images = write(asked), ("--images", str(picture.parent), "--max-tokens", "2")
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert run(command(bundle, rows, whole, *images)) == 3
    on_ray = command(bundle, rows, output, *images, "--executor", "ray", "--workers", "2")
    journal = output.with_name(output.name + ".partial")
    assert killed_after(on_ray, journal, 300)
    assert not output.exists()
    done = subprocess.run([sys.executable, "-m", "la_trt.cli", *on_ray], capture_output=True)
    assert done.returncode == 3, done.stderr.decode()
    check_every_row_once(output, asked)
    assert output.read_bytes() == whole.read_bytes()
