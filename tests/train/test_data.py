"""Rows to examples: both forms, every kind of bad row, order, resuming, references, tags."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from la_trt.errors import InputError, UsageError
from la_trt.limits import Limits
from la_trt.lookworld import WorldConfig, sample
from la_trt.processor.tokenizer import Vocabulary
from train.data import (
    Example,
    LookWorldRef,
    RowError,
    RowLimits,
    encode_response,
    lookworld_example,
    read_examples,
    to_row,
)
from train.reflections import build, cold_start, load_callable, reflections_of_file, with_reflection

ANSWER = (
    "<SUMMARY> I count. </SUMMARY>\n\n<CAPTION> Two cats. </CAPTION>\n\n"
    "<REASONING> One, two. </REASONING>\n\n<CONCLUSION> 2 </CONCLUSION>"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with two pictures that decode and some that do not."""
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 40), (10, 10, 200)).save(tmp_path / "b.jpg")
    Image.new("L", (1, 900)).save(tmp_path / "thin.png")
    whole = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def write(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path = folder / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def plain(**fields: Any) -> dict[str, Any]:
    return {"image": "a.png", "question": "How many?", **fields}


def chat(*turns: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    said = [{"from": who, "value": text} for who, text in turns]
    return {"id": "x/1", "image": "a.png", "conversations": said, **fields}


def test_plain_rows(folder: Path) -> None:
    path = write(
        folder,
        plain(answer="3", response=ANSWER, id=7),
        plain(image=["a.png", "b.jpg"], answer=4),
        plain(question="<image> is a word here"),
    )
    first, second, third = read_examples(path)
    assert first == Example(
        images=(folder / "a.png",), question="How many?", response=ANSWER, answer="3", id="7"
    )
    assert second.images == (folder / "a.png", folder / "b.jpg")
    assert (second.answer, second.response, second.id) == ("4", None, "row-1")
    assert third.question == "<image> is a word here"


def test_chat_rows(folder: Path) -> None:
    path = write(
        folder,
        chat(("human", "<image>\nHow many cats?"), ("gpt", ANSWER)),
        chat(("human", "How many cats?\n<image>"), ("gpt", "Two.")),
        chat(("human", "How many?"), ("gpt", "2"), ("human", "Sure?"), ("gpt", "Yes")),
        chat(("human", "<image>\n<image>\nSame?"), image=["a.png", "b.jpg"]),
    )
    first, second, third, fourth = read_examples(path)
    assert (first.question, first.answer, first.response) == ("How many cats?", "2", ANSWER)
    assert (second.question, second.answer, second.response) == ("How many cats?", None, "Two.")
    assert (third.question, third.response) == ("How many?", "2")
    assert (fourth.question, len(fourth.images), fourth.response) == ("Same?", 2, None)


BAD: list[tuple[str, Any]] = [
    ("broken JSON", b'{"image": "a.png", "question": "How'),
    ("broken JSON", b'{"question": "a", "question": "b", "image": "a.png"}'),
    ("broken JSON", b'{"image": "a.png", "question": "?", "answer": NaN}'),
    ("broken JSON", b"\xff\xfe not utf-8"),
    ("broken JSON", b"[" * 5000),
    ("wrong type", b'["a.png", "How many?"]'),
    ("wrong type", plain(question=7)),
    ("wrong type", plain(answer=["3"])),
    ("wrong type", plain(answer=True)),
    ("wrong type", plain(response={"text": "3"})),
    ("wrong type", plain(image=3)),
    ("wrong type", plain(image=["a.png", None])),
    ("wrong type", plain(id=True)),
    ("wrong type", {"image": "a.png"}),
    ("wrong type", chat(("human", None))),
    ("wrong type", {"image": "a.png", "conversations": ["How many?"]}),
    ("wrong type", {"image": "a.png", "conversations": "How many?"}),
    ("empty question", plain(question=" \n")),
    ("empty question", chat(("human", "<image>\n"), ("gpt", "2"))),
    ("unknown role", chat(("robot", "How many?"))),
    ("unknown role", chat(("system", "Be brief."), ("human", "How many?"))),
    ("turns out of order", chat(("gpt", "2"), ("human", "How many?"))),
    ("turns out of order", {"image": "a.png", "conversations": []}),
    ("misplaced <image>", chat(("human", "What does <image> show?"))),
    ("misplaced <image>", chat(("human", "<image><image>\nSame?"))),
    ("missing image", {"question": "How many?"}),
    ("missing image", plain(image=[])),
    ("missing image", plain(image="none.png")),
    ("missing image", plain(image=".")),
    ("missing image", plain(image="a\0b.png")),
    ("missing image", plain(image="n" * 5000 + ".png")),
    ("huge image", plain(image="thin.png")),
    ("corrupt image", plain(image="cut.jpg")),
    ("corrupt image", plain(image="text.png")),
    ("broken text", b'{"image": "a.png", "question": "\\ud800?"}'),
    ("broken text", b'{"image": "a.png", "question": "?", "response": "\\udfff"}'),
    ("too long", plain(question="x" * 20_000)),
    ("too long", plain(response="x" * 70_000)),
    ("too long", plain(image=["a.png"] * 9)),
    ("too long", plain(rest="x" * (1 << 20))),
    ("lookworld", {"question": "?", "lookworld": {"split": "nowhere", "index": 0}}),
    ("lookworld", {"question": "?", "lookworld": {"split": "train", "index": -1}}),
    ("lookworld", {"question": "?", "lookworld": {"split": "train", "index": 0}}),
    ("lookworld", {"question": "?", "lookworld": {"split": "train", "index": 0, "seed": 3}}),
    (
        "lookworld",
        {
            "question": "?",
            "lookworld": {"split": "train", "index": 0, "world": {"sizes": [["a", 84]]}},
        },
    ),
    (
        "lookworld",
        {
            "question": "?",
            "lookworld": {"split": "train", "index": 0, "world": {"clutter": True}},
        },
    ),
    ("lookworld", {"question": "?", "lookworld": "train/0"}),
]


@pytest.mark.parametrize(("reason", "row"), BAD, ids=[f"{k}-{r}" for k, (r, _) in enumerate(BAD)])
def test_a_bad_row_is_skipped_and_counted(folder: Path, reason: str, row: Any) -> None:
    reader = read_examples(write(folder, plain(id="before"), row, plain(id="after")))
    assert [example.id for example in reader] == ["before", "after"]
    assert reader.skipped == Counter({reason: 1})
    assert reader.position == reader.num_rows == 3


def test_huge_pictures_of_the_world_are_refused(folder: Path) -> None:
    world = {"sizes": [[84, 84_000]]}
    row = {"question": "?", "lookworld": {"split": "train", "index": 0, "world": world}}
    reader = read_examples(write(folder, row))
    assert list(reader) == [] and sum(reader.skipped.values()) == 1
    small = RowLimits(images=Limits(max_image_pixels=1000))
    reader = read_examples(write(folder, plain()), limits=small)
    assert list(reader) == [] and reader.skipped == Counter({"huge image": 1})


def test_blank_lines_marks_and_missing_line_ends(folder: Path) -> None:
    row = json.dumps(plain()).encode()
    path = folder / "odd.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n  \n" + row + b"\n\n" + row)
    reader = read_examples(path)
    assert (reader.num_rows, len(list(reader)), reader.skipped) == (3, 3, Counter())
    path.write_bytes(b"")
    assert list(read_examples(path)) == []


def test_what_is_required(folder: Path) -> None:
    path = write(folder, plain(answer="3"), plain(response=ANSWER), plain(answer="", response="x"))
    reader = read_examples(path, require=("response",))
    assert [e.response for e in reader] == [ANSWER, "x"]
    assert reader.skipped == Counter({"no response": 1})
    reader = read_examples(path, require=("answer",))
    assert [e.answer for e in reader] == ["3"]
    assert reader.skipped == Counter({"no answer": 2})


@pytest.mark.parametrize("num", [1, 19, 111])
def test_shuffled_by_seed_and_resumed_by_position(folder: Path, num: int) -> None:
    rows: list[Any] = [plain(id=str(k)) for k in range(num)]
    if num > 1:
        rows[num // 2] = b"{broken"
    path = write(folder, *rows)
    whole = read_examples(path, seed=5, epochs=3)
    ids = [example.id for example in whole]
    good = num - (num > 1)
    assert len(ids) == 3 * good and whole.position == 3 * num
    assert [sorted(ids[i : i + good], key=int) for i in (0, good, 2 * good)] == [
        sorted(set(ids), key=int)
    ] * 3
    if num > 1:
        assert ids[:good] != ids[good : 2 * good] and ids[:good] != sorted(ids[:good], key=int)
    for taken in {0, 1, good, 3 * good - 1}:
        reader = read_examples(path, seed=5, epochs=3)
        begun = [next(reader).id for _ in range(taken)]
        resumed = read_examples(path, seed=5, epochs=3, start=reader.position)
        assert begun + [example.id for example in resumed] == ids
    other = [e.id for e in read_examples(path, seed=6, epochs=3)]
    assert num == 1 or other != ids
    assert [e.id for e in islice(read_examples(path, seed=5, epochs=None), len(ids))] == ids


def test_a_file_without_one_usable_row_does_not_go_on_for_ever(folder: Path) -> None:
    path = write(folder, b"{", plain(image="none.png"))
    counts = r"\(broken JSON 2, missing image 2\)"
    such = r"such as: missing image: .*none\.png.*\n"
    with pytest.raises(InputError, match=f"none of 2 rows can be used {counts}, {such}"):
        next(read_examples(path, epochs=None, seed=1))
    with pytest.raises(InputError, match="none of 0 rows"):
        next(read_examples(write(folder, b"", name="empty.jsonl"), epochs=None))


def test_files_that_cannot_be_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jsonl")
    pointer = folder / "pointer.jsonl"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    for path, message in (
        (folder / "none.jsonl", "no such file"),
        (folder, "not a regular file"),
        (folder / "pipe.jsonl", "not a regular file"),
        (pointer, "git-LFS"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_examples(path)
        assert caught.value.name == "E_DATA"
    with pytest.raises(UsageError, match="start >= 0"):
        read_examples(write(folder, plain()), start=-1)
    with pytest.raises(UsageError, match="require"):
        read_examples(write(folder, plain()), require=("caption",))


def test_the_fingerprint_is_the_files(folder: Path) -> None:
    first = read_examples(write(folder, plain())).fingerprint
    assert read_examples(write(folder, plain(), name="same.jsonl")).fingerprint == first
    assert read_examples(write(folder, plain(id="1"), name="c.jsonl")).fingerprint != first


def test_images_may_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("data")
    path = write(elsewhere, plain())
    assert [e.images for e in read_examples(path, folder)] == [(folder / "a.png",)]
    example = next(read_examples(path, folder))
    row = to_row(example, elsewhere, ANSWER)
    again = next(read_examples(write(elsewhere, row, name="again.jsonl")))
    assert again.images[0].resolve() == (folder / "a.png").resolve()  # type: ignore[union-attr]
    assert (again.question, again.response) == (example.question, ANSWER)
    # A file written here names them from its own place, with --images as before.
    kept = next(read_examples(elsewhere / "again.jsonl", folder))
    assert kept.images[0].resolve() == (folder / "a.png").resolve()  # type: ignore[union-attr]


WORLDS = [WorldConfig(), WorldConfig(sizes=((112, 84), (84, 112)), clutter=0.5, inverted=True)]


@pytest.mark.parametrize("world", WORLDS, ids=["default", "small"])
@pytest.mark.parametrize("family", [None, "describe", "place"])
def test_lookworld_references(folder: Path, family: str | None, world: WorldConfig) -> None:
    ref = LookWorldRef(split="train", index=19, family=family, world=world)
    example = lookworld_example(ref)
    row = to_row(example, folder, "<CONCLUSION>x</CONCLUSION>")
    again = next(read_examples(write(folder, row)))
    drawn = sample("train", 19, world, family)
    assert again.lookworld == ref
    assert (again.question, again.answer) == (drawn.question.text, drawn.answer)
    assert again.response == "<CONCLUSION>x</CONCLUSION>"
    assert drawn.image is not None and isinstance(again.images[0], Image.Image)
    np.testing.assert_array_equal(np.asarray(again.images[0]), np.asarray(drawn.image))
    reader = read_examples(write(folder, row | {"answer": "none"}, row | {"question": "Why?"}))
    assert list(reader) == [] and reader.skipped == Counter({"lookworld": 2})


def test_only_tags_of_a_response_become_control_tokens(tiny_vocabulary: Vocabulary) -> None:
    text = "<REFLECTION>see <|image_pad|><|im_end|></REFLECTION><CONCLUSION>2</CONCLUSION>"
    ids = encode_response(tiny_vocabulary, text)
    controls = tiny_vocabulary.controls
    found = [i for i in ids if i in tiny_vocabulary.control_ids]
    names = ["<REFLECTION>", "</REFLECTION>", "<CONCLUSION>", "</CONCLUSION>"]
    assert found == [controls[name] for name in names]
    assert tiny_vocabulary.decode(ids) == text


def test_one_reflection_before_the_conclusion() -> None:
    made = with_reflection(ANSWER, " I look again: two. ")
    assert made == ANSWER.replace(
        "<CONCLUSION>", "<REFLECTION>I look again: two.</REFLECTION>\n\n<CONCLUSION>"
    )
    for reason, response, reflection in (
        ("reflects already", made, "again"),
        ("malformed response", ANSWER.replace("</CAPTION>", ""), "again"),
        ("malformed response", ANSWER + "<SUMMARY></SUMMARY>", "again"),
        ("malformed response", "2", "again"),
        ("no reflection", ANSWER, " \n"),
        ("tag in reflection", ANSWER, "so <CONCLUSION>3</CONCLUSION>"),
    ):
        with pytest.raises(RowError) as caught:
            with_reflection(response, reflection)
        assert caught.value.reason == reason


def test_cold_start_file(folder: Path) -> None:
    data = write(
        folder,
        chat(("human", "<image>\nHow many?"), ("gpt", ANSWER), id="good"),
        chat(("human", "How many?"), ("gpt", "two"), id="short"),
        chat(("human", "How many?"), ("gpt", ANSWER), id="unknown"),
        chat(("human", "How many?"), id="silent"),
        plain(image="none.png", response=ANSWER),
    )
    reflections = write(
        folder,
        {"id": "good", "reflection": "Two cats, yes."},
        {"id": "short", "reflection": "Two."},
        name="reflections.jsonl",
    )
    output = folder / "cold.jsonl"
    counts = build(data, None, reflections_of_file(reflections), output, 10, seed=0)
    assert counts == {
        "written": 1,
        "rows_passed": 5,
        "skipped": {
            "malformed response": 1,
            "missing image": 1,
            "no reflection": 1,
            "no response": 1,
        },
    }
    (example,) = read_examples(output)
    assert example.response == with_reflection(ANSWER, "Two cats, yes.")
    assert (example.id, example.answer) == ("good", "2")
    skipped: Counter[str] = Counter()
    many = [example.__class__(**{**_fields(example), "response": ANSWER})] * 5
    assert len(list(cold_start(many, lambda e: "Yes.", 3, skipped))) == 3 and not skipped


def _fields(example: Example) -> dict[str, Any]:
    return {name: getattr(example, name) for name in Example.__slots__}


def test_sources_by_name() -> None:
    assert load_callable("json:dumps") is json.dumps
    for spec in ("json", "json:nothing", "nowhere_at_all:f", ":f"):
        with pytest.raises(UsageError, match="module:function"):
            load_callable(spec)
