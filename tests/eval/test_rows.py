"""Data files of every kind: good rows, bad rows by number, files that are wrong as a whole."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from la_trt.errors import InputError, MachineError
from la_trt.eval.images import image_of
from la_trt.eval.items import Item
from la_trt.eval.rows import RowError, data_files, list_of, read_items, read_rows, text_of
from tests.eval.scripted import picture


def rows(path: Path) -> list[tuple[str, Any]]:
    return [(w, str(r) if isinstance(r, RowError) else dict(r)) for w, r in read_rows(path)]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": "\xc3\xa9"}\r\n{"a": 3}')
    expected = [("a.jsonl row 1", {"a": 1}), ("a.jsonl row 3", {"a": "é"})]
    assert rows(path) == [*expected, ("a.jsonl row 4", {"a": 3})]


def test_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(' [{"a": 1}, 7]')
    assert rows(path) == [
        ("a.json row 1", {"a": 1}),
        ("a.json row 2", "expected an object, got int"),
    ]


def test_bad_lines_are_single_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    deep = "[" * 2000 + "]" * 2000
    lines = ['{"a": 1}', '{"a": ', "[1]", '{"a": NaN}', '{"a": 1, "a": 2}', f'{{"a": {deep}}}']
    path.write_bytes("\n".join(lines).encode() + b'\n{"a": "\xff"}\n{"a": 8}\n')
    found = rows(path)
    assert [w for w, _ in found] == [f"a.json row {n}" for n in range(1, 9)]
    good = [r for _, r in found if isinstance(r, dict)]
    assert good == [{"a": 1}, {"a": 8}]
    assert "stands twice" in found[4][1] and "UTF-8" in found[6][1]


def test_tables(tmp_path: Path) -> None:
    tsv, csv = tmp_path / "a.tsv", tmp_path / "a.csv"
    long = "x" * 300_000
    tsv.write_text(f'index\tq\n1\t"two\nlines"\n2\t{long}\n3\n4\td\te\n')
    csv.write_text('index,q\n1,"a, b"\n')
    assert rows(tsv) == [
        ("a.tsv row 1", {"index": "1", "q": "two\nlines"}),
        ("a.tsv row 2", {"index": "2", "q": long}),
        ("a.tsv row 3", "1 cells, the header names 2"),
        ("a.tsv row 4", "3 cells, the header names 2"),
    ]
    assert rows(csv) == [("a.csv row 1", {"index": "1", "q": "a, b"})]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.json", b"[1, 2", "not valid JSON"),
        ("a.tsv", b"one\n", "names no columns"),
        ("a.tsv", b"a\tb\n\xff\tc\n", "not UTF-8"),
        ("a.tsv", b'a\tb\n"open\tc\n', "not a table"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
        ("a.tsv", b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
    ],
)
def test_wholly_wrong_files(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=part) as caught:
        rows(path)
    assert caught.value.name == "E_DATASET" and str(path) in str(caught.value)


def test_files_of_a_directory(tmp_path: Path) -> None:
    for name in ("b.tsv", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert [p.name for p in data_files(tmp_path, "s")] == ["a.jsonl", "b.tsv"]
    assert data_files(tmp_path / "b.tsv", "s") == [tmp_path / "b.tsv"]
    (tmp_path / "empty").mkdir()
    for path in (None, tmp_path / "none.tsv", tmp_path / "notes.txt", tmp_path / "empty"):
        with pytest.raises(InputError, match=r"--data|export") as caught:
            data_files(path, "s")
        assert caught.value.name == "E_DATASET"


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError, match="needs pyarrow") as caught:
        rows(path)
    assert caught.value.name == "E_NO_PYARROW" and ".jsonl" in str(caught.value)


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = arrow.table(
        {"id": [1, 2], "image": [{"bytes": b"ab", "path": None}, None], "options": [["x"], []]}
    )
    parquet.write_table(table, path)
    assert rows(path) == [
        ("a.parquet row 1", {"id": 1, "image": {"bytes": b"ab", "path": None}, "options": ["x"]}),
        ("a.parquet row 2", {"id": 2, "image": None, "options": []}),
    ]
    path.write_bytes(b"PAR1 nothing more")
    with pytest.raises(InputError, match="not Parquet"):
        rows(path)


def make(row: dict[str, Any], path: Path, number: int) -> Item | None:
    if row["id"] == "none":
        return None
    if row["id"] == "bad":
        raise RowError("no good")
    id_ = str(row["id"])
    return Item(id=id_, unit=id_, category="c", parts=("q",), images=(), expected="")


def write_ids(path: Path, *ids: object) -> Path:
    path.write_text("".join(json.dumps({"id": i}) + "\n" for i in ids))
    return path


def test_bad_rows_are_counted_with_their_number(tmp_path: Path) -> None:
    path = write_ids(tmp_path / "a.jsonl", 1, "bad", "none", None, 1, 2)
    loaded = read_items([path], "s", ("id",), make)
    assert [item.id for item in loaded.items] == ["1", "2"]
    assert [str(row) for row in loaded.bad_rows] == [
        "a.jsonl row 2: no good",
        "a.jsonl row 4: no id",
        "a.jsonl row 5: question '1' stands twice",
    ]


def test_no_good_row_is_an_error(tmp_path: Path) -> None:
    path = write_ids(tmp_path / "a.jsonl", "bad", "bad")
    with pytest.raises(InputError, match=r"a\.jsonl row 1: no good \(2 bad rows\)") as caught:
        read_items([path], "s", ("id",), make)
    assert caught.value.exit_code == 3


def test_fields() -> None:
    row = {"a": " x ", "n": 3, "f": 2.5, "l": ["p", 4], "s": "['p', \"q\"]", "j": '["r"]', "e": ""}
    assert (text_of(row, "none", "a"), text_of(row, "n"), text_of(row, "f")) == ("x", "3", "2.5")
    assert text_of({"a": float("nan"), "b": None}, "a", "b") == ""
    assert list_of(row, "l") == ["p", "4"]
    assert (list_of(row, "s"), list_of(row, "j"), list_of(row, "e")) == (["p", "q"], ["r"], [])
    for bad in ("__import__('os')", "[1", "7", "{'a': 1}", "[[1]]"):
        with pytest.raises(RowError, match="expected a list"):
            list_of({"x": bad}, "x")
    with pytest.raises(RowError, match="expected text"):
        text_of(row, "l")


def test_images(tmp_path: Path) -> None:
    path = picture(tmp_path / "in" / "a.png")
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    directory = tmp_path / "in"
    assert image_of("a.png", directory) == path
    for value in (text, f"data:image/png;base64,{text}", data, {"bytes": data, "path": "b.png"}):
        assert image_of(value, directory) == data
    assert image_of({"bytes": None, "path": "a.png"}, directory) == path


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (None, "no image"),
        ("", "no image"),
        (7, "no image"),
        (b"", "empty"),
        ("b.png", "no file"),
        ("../a.png", "leads out"),
        ("/etc/hostname", "leads out"),
        ("x" * 300 + "!", "neither"),
        ("\u56fe" * 100 + ".png", "File name too long"),
        ("a\0.png", "no name of a file"),
        ("a\ud800.png", "no name of a file"),
        ("circle.png", "no name of a file"),
        ("data:image/png;base64,****", "neither"),
        ("data:image/png;base64,", "empty"),
        ({"path": None}, "no image"),
    ],
)
def test_bad_images(tmp_path: Path, value: Any, part: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "circle.png").symlink_to("circle.png")
    with pytest.raises(RowError, match=part):
        image_of(value, tmp_path / "in")


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.png").symlink_to(picture(tmp_path / "a.png"))
    with pytest.raises(RowError, match="leads out"):
        image_of("link.png", tmp_path / "in")
