"""A journal's entries are on the disk when `append` returns."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from train.journal import Journal


def test_an_entry_is_synced_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.part"
    synced: list[list[object]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        assert os.path.samestat(os.fstat(descriptor), path.stat())
        synced.append([json.loads(line) for line in path.read_bytes().splitlines()])
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with Journal(path, {"run": 1}) as journal:
        assert synced == [[{"run": 1}]]
        for k in range(2):
            journal.append({"asked": k})
            assert len(synced) == k + 2 and synced[-1] == [{"run": 1}, *journal.entries]
    assert journal.entries == [{"asked": 0}, {"asked": 1}]
