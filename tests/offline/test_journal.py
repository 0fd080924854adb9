"""The journal of a batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from la_trt.offline.journal import file_name, open_journal


def test_records_are_on_disk_when_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    path = file_name(output)
    synced: list[tuple[str, bytes]] = []

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((name, Path(name).read_bytes()))

    with open_journal(output, {"asked": {}}, resume=True) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        for numbers in ((1, 2), (3,)):
            assert journal.append({"line": n, "text": "t"} for n in numbers) == len(numbers)
            assert synced[-1] == (str(path), path.read_bytes())
    assert len(synced) == 2 and path.read_bytes().count(b"\n") == 4
