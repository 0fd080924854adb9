"""The journal of a batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from la_trt.errors import MachineError
from la_trt.offline import journal as journals
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


@pytest.mark.parametrize("resume", [True, False])
def test_a_journal_that_another_batch_just_published_is_not_written(
    resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    lock, others = journals.try_lock, iter([True])

    def locked(descriptor: int) -> bool:
        if next(others, False):  # opened while the other batch held it, locked when it was done
            output.write_text('{"line": 1, "text": "theirs"}\n')
            file_name(output).unlink()
        return lock(descriptor)

    monkeypatch.setattr(journals, "try_lock", locked)
    if resume:
        with (
            pytest.raises(MachineError, match="exists already"),
            open_journal(output, {"asked": {}}, resume=True),
        ):
            pass
        return
    with open_journal(output, {"asked": {}}, resume=False) as journal:
        journal.append([{"line": 1, "text": "ours"}])
        assert b"ours" in file_name(output).read_bytes()
        journal.publish([1])
    assert "ours" in output.read_text() and not file_name(output).exists()
