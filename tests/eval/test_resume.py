"""What a resumed evaluation relies on: durable answers, and questions told apart."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from la_trt.errors import UsageError
from la_trt.eval.items import Item
from la_trt.eval.store import ANSWERS, open_run
from tests.eval.scripted import picture
from tests.eval.test_runner import SETTINGS, always, items_in, run_all


def test_an_answer_is_on_disk_when_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / ANSWERS
    synced: list[tuple[str, bytes]] = []

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((name, Path(name).read_bytes()))

    with open_run(tmp_path / "run", SETTINGS, resume=True) as run:
        monkeypatch.setattr(os, "fsync", fsync)
        for id_ in "ab":
            run.append({"id": id_, "text": "t", "sha256": "0"})
            assert synced[-1] == (str(path), path.read_bytes())
    assert len(synced) == path.read_bytes().count(b"\n") == 2


def test_other_pictures_are_other_questions(tmp_path: Path) -> None:
    items = items_in(tmp_path)
    run_all(tmp_path / "run", items, always("A"))
    again = always("B")
    run_all(tmp_path / "run", items_in(tmp_path), again)
    assert again.asked == []
    picture(tmp_path / "picture.png", "blue")
    with pytest.raises(UsageError, match="the data differ") as caught:
        run_all(tmp_path / "run", items, always("A"))
    assert caught.value.name == "E_RESUME"


def test_a_picture_counts_with_its_content(tmp_path: Path) -> None:
    (item,) = items_in(tmp_path, 1)

    def of(image: Path | bytes) -> str:
        return replace(item, images=(image,)).sha256

    red, blue = picture(tmp_path / "a" / "1.png"), picture(tmp_path / "b" / "1.png", "blue")
    assert of(red) == of(picture(tmp_path / "2.png")) == of(red.read_bytes())
    assert len({of(red), of(blue), of(tmp_path / "gone.png")}) == 3


def test_a_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, read = hashlib.file_digest, list[str]()

    def file_digest(file: object, name: str) -> object:
        read.append(name)
        return digest(file, name)  # type: ignore[call-overload]

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    items = items_in(tmp_path)
    assert len({item.sha256 for item in [*items, *items]}) == len(items)
    assert len(read) == 1


def test_a_lone_surrogate_in_an_id_ends_nothing(tmp_path: Path) -> None:
    items = items_in(tmp_path, 3)
    odd: list[Item] = [replace(item, id=f"{item.id}\ud800", category="\ud800") for item in items]
    report = run_all(tmp_path / "run", odd, always("A"))
    assert report["num_units"] == 3
    again = always("B")
    assert run_all(tmp_path / "run", odd, again)["scores"] == report["scores"]
    assert again.asked == []
