"""`la-trt batch`: one line for every row, whatever the row, and none twice."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from la_trt import LookAgain
from la_trt.cli.app import run
from la_trt.offline.journal import Journal
from tests.offline.conftest import BACKEND, command, records

Write = Callable[[Any], Path]


def test_answers_are_those_of_python_in_the_order_of_the_rows(
    bundle: Path, write: Write, picture: Path, tmp_path: Path
) -> None:
    shutil.copy(picture, tmp_path / "circle.png")
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    rows = write(
        [
            {"id": "a", "prompt": "How many?", "images": ["circle.png"]},
            {"prompt": "Hi", "max_tokens": 2},
            {"id": "c", "prompt": "How many?", "images": [url], "policy": "route"},
        ]
    )
    output = tmp_path / "answers.jsonl"
    assert run(command(bundle, rows, output)) == 0
    found = records(output)
    assert [(r["line"], r["id"]) for r in found] == [(1, "a"), (2, "line-2"), (3, "c")]
    model = LookAgain.from_bundle(bundle, backend=BACKEND)  # type: ignore[arg-type]
    whole = model.generate([picture], "How many?", max_tokens=4)
    routed = model.generate([picture], "How many?", max_tokens=4, policy="route")
    short = model.generate([], "Hi", max_tokens=2)
    assert [r["text"] for r in found] == [whole.text, short.text, routed.text]
    assert [r["policy"] for r in found] == ["copy", "copy", "route"]
    assert not output.with_name("answers.jsonl.partial").exists()


def test_an_answer_that_nobody_bounds_gets_what_the_context_has_left(
    bundle: Path, write: Write, tmp_path: Path
) -> None:
    """As in `la-trt infer` and `serve`; a row's own bound beyond the context is refused."""
    rows, output = write([{"prompt": "Hi"}, {"prompt": "Hi", "max_tokens": 64}]), tmp_path / "out"
    short = ["--max-model-len", "64"]
    unbounded = [a for a in command(bundle, rows, output, *short) if a not in ("--max-tokens", "4")]
    assert run(unbounded) == 3
    answer, refused = records(output)
    assert answer["completion_tokens"] == 64 - answer["prompt_tokens"]
    assert answer["finish_reason"] == "length"
    assert refused["error"]["code"] == "E_CONTEXT_LENGTH"


BAD = {
    '{"prompt": 3}': "prompt: expected text, got 3",
    '{"promt": "a"}': "unknown field 'promt'",
    "{}": "no prompt",
    "[1]": "expected an object, got list",
    '{"prompt": "a"': "not valid JSON",
    '{"prompt": "a", "prompt": "b"}': "stands twice",
    '{"prompt": "a", "images": "a.png"}': "images: expected a list",
    '{"prompt": "a", "images": ["gone.png"]}': "no file 'gone.png'",
    '{"prompt": "a", "images": ["../rows.jsonl"]}': "leads out of",
    '{"prompt": "a", "images": ["rows.jsonl"]}': "image",
    '{"prompt": "a", "max_tokens": 0}': "max_tokens: expected a whole number",
    '{"prompt": "a", "max_tokens": true}': "max_tokens: expected a whole number",
    '{"prompt": "a", "max_tokens": 99999999}': "99999999 for the answer are more than the",
    '{"prompt": "a", "images": ["' + "\u56fe" * 100 + '.png"]}': "File name too long",
    '{"prompt": "a", "images": ["a\\u0000.png"]}': "no name of a file",
    '{"prompt": "a", "images": ["a\\ud800.png"]}': "no name of a file",
    '{"prompt": "a", "temperature": -1}': "temperature: expected a number",
    '{"prompt": "a", "temperature": 1' + "0" * 400 + "}": "temperature: expected a number of at",
    '{"prompt": "a", "temperature": NaN}': "NaN is not a JSON number",
    '{"prompt": "a", "policy": "/etc/p.yaml"}': "policy: expected one of",
    '{"prompt": "a", "id": ""}': "id: expected text of 1 to 512 characters, got ''",
    '{"prompt": "a", "id": 6}': "id: expected text of 1 to 512 characters, got 6",
    '{"prompt": "a", "id": "b\\ud800"}': "id: expected text of 1 to 512 characters, got ",
    '{"prompt": "a", "id": "good"}': "stands in line 1 already",
}


def test_bad_rows_are_refused_by_line_and_the_others_answered(
    bundle: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write([{"id": "good", "prompt": "a"}, *BAD, {"prompt": "last"}])
    output = tmp_path / "answers.jsonl"
    assert run(command(bundle, rows, output)) == 3
    found = records(output)
    assert [r["line"] for r in found] == list(range(1, len(BAD) + 3))
    assert "text" in found[0] and "text" in found[-1]
    for record, said in zip(found[1:-1], BAD.values(), strict=True):
        assert said in record["error"]["message"], record
        assert set(record) == {"line", "id", "error"}
    error = capsys.readouterr().err
    assert f"error[E_ROW]: {len(BAD)} of {len(BAD) + 2} rows were refused" in error


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no rows in it"),
        (b"\n \n", "no rows in it"),
        (b'{"promt": 1}\n', "line 1: unknown field 'promt'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-LFS pointer"),
        (b"\xff\xfe\n", "line 1: not UTF-8"),
    ],
)
def test_a_file_without_a_good_row_is_refused_and_leaves_nothing(
    content: bytes, said: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_bytes(content)
    assert run(command(bundle, rows, output)) == 3
    assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_finished_output_is_kept_unless_told_otherwise(
    bundle: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = write([{"prompt": "a"}]), tmp_path / "out.jsonl"
    assert run(command(bundle, rows, output)) == 0
    before = output.read_bytes()
    assert run(command(bundle, rows, output)) == 5
    assert "error[E_OUTPUT_EXISTS]" in capsys.readouterr().err
    assert run(command(bundle, rows, output, "--no-resume", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["refused"], facts["resumed"]) == (1, 0, 0)
    assert output.read_bytes() == before


def test_questions_and_what_is_no_answers_are_never_replaced(
    bundle: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, notes = write([{"prompt": "a"}]), tmp_path / "notes.txt"
    notes.write_text("mine\n")
    before = rows.read_bytes()
    for more in ([], ["--no-resume"]):
        assert run(command(bundle, rows, rows, *more)) == 2
        assert "is the file of questions" in capsys.readouterr().err
        assert run(command(bundle, rows, notes, *more)) == 5
        assert "error[E_OUTPUT_EXISTS]" in capsys.readouterr().err
    assert rows.read_bytes() == before and notes.read_text() == "mine\n"


def test_a_refused_row_keeps_its_id(bundle: Path, write: Write, tmp_path: Path) -> None:
    given = [{"id": "a", "prompt": ""}, {"id": "b", "prompt": "b"}, {"id": "b", "prompt": "c"}]
    rows, output = write([*given, {"id": "d", "prompt": "d", "foo": 1}]), tmp_path / "out.jsonl"
    assert run(command(bundle, rows, output)) == 3
    assert [record["id"] for record in records(output)] == ["a", "b", "line-3", "d"]


def test_a_pipe_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(pipe := tmp_path / "rows.jsonl")
    assert run(command(bundle, pipe, tmp_path / "out.jsonl")) == 3
    assert "not a regular file" in capsys.readouterr().err


def test_a_run_that_answered_nothing_binds_nobody(
    bundle: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = write([{"prompt": "a"}, {"prompt": 7}]), tmp_path / "out.jsonl"
    too_long = str(10**6)
    assert run(command(bundle, rows, output, "--max-model-len", too_long)) == 2
    assert "1000000" in capsys.readouterr().err
    assert run(command(bundle, rows, output)) == 3  # the bad row
    assert [record.get("error", {}).get("code") for record in records(output)] == [None, "E_ROW"]


def test_another_batch_is_not_resumed(
    bundle: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = write([{"prompt": "a"}, {"prompt": "b"}]), tmp_path / "out.jsonl"
    interrupted(bundle, rows, output, 1)
    assert run(command(bundle, rows, output, "--temperature", "0.5")) == 2
    assert "was begun with temperature 0.0, now 0.5" in capsys.readouterr().err
    assert run(command(bundle, rows, output, "--images", str(tmp_path))) == 2
    assert f"was begun with images null, now {json.dumps(str(tmp_path))[:60]}" in (
        capsys.readouterr().err
    )
    assert run(command(bundle, rows, output, "--max-image-pixels", "10")) == 2
    assert "was begun with limits.max_image_pixels 50000000, now 10" in capsys.readouterr().err
    rows.write_text('{"prompt": "c"}\n')
    assert run(command(bundle, rows, output)) == 2
    assert "was begun with input" in capsys.readouterr().err


def test_ctrl_c_says_that_the_same_command_goes_on(
    bundle: Path,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, output = write([{"prompt": f"{i}?"} for i in range(40)]), tmp_path / "out.jsonl"
    real = Journal.append

    def append(self: Journal, records: Any) -> int:
        if self.records:
            raise KeyboardInterrupt
        return real(self, records)

    monkeypatch.setattr(Journal, "append", append)
    assert run(command(bundle, rows, output)) == 130
    goes_on = f"la-trt: interrupted: the same command goes on from {output}.partial"
    assert capsys.readouterr().err.splitlines()[-1] == goes_on
    monkeypatch.undo()
    assert run(command(bundle, rows, output, "--json")) == 0
    assert 0 < json.loads(capsys.readouterr().out)["resumed"] < 40


def test_a_missing_directory_of_images_is_said_at_once(
    bundle: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = write([{"prompt": "a"}]), tmp_path / "out.jsonl"
    assert run(command(bundle, rows, output, "--images", str(tmp_path / "no"))) == 2
    assert f"--images {tmp_path / 'no'}: no such directory" in capsys.readouterr().err
    assert not output.exists()


def test_a_torn_line_is_cut_off_and_its_row_asked_again(
    bundle: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = write([{"prompt": f"{i}?"} for i in range(6)]), tmp_path / "out.jsonl"
    assert run(command(bundle, rows, output)) == 0
    whole = output.read_bytes()
    journal = interrupted(bundle, rows, output, 3)
    data = journal.read_bytes()
    for cut in (1, 30):
        journal.write_bytes(data[:-cut])
        output.unlink(missing_ok=True)
        assert run(command(bundle, rows, output, "--json")) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["resumed"] == 2
        assert output.read_bytes() == whole
    journal.write_bytes(data[:-40] + b"\n" + data[-40:])
    output.unlink()
    assert run(command(bundle, rows, output)) == 3
    assert "not a record" in capsys.readouterr().err


def interrupted(bundle: Path, rows: Path, output: Path, num: int) -> Path:
    """The journal of a batch that was killed after `num` records; the output is gone."""
    journal = output.with_name(output.name + ".partial")
    kept: list[bytes] = []
    real = os.unlink

    def keep(path: Any, **given: Any) -> None:
        if Path(path) == journal:
            kept.append(journal.read_bytes())
        real(path, **given)

    output.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", keep)
        assert run(command(bundle, rows, output)) == 0
    output.unlink()
    journal.write_bytes(b"".join(kept[0].splitlines(keepends=True)[: num + 1]))
    return journal


@pytest.mark.parametrize("flag", ["--workers", "--worker-gpus", "--ray-address"])
def test_a_flag_of_the_other_executor_is_refused(
    flag: str, bundle: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write([{"prompt": "a"}])
    assert run(command(bundle, rows, tmp_path / "out.jsonl", flag, "1")) == 2
    assert f"{flag} has no effect on this process" in capsys.readouterr().err


def test_without_ray_the_executor_says_what_to_install(
    bundle: Path,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    rows = write([{"prompt": "a"}])
    assert run(command(bundle, rows, tmp_path / "out.jsonl", "--executor", "ray")) == 5
    assert "install la-trt[ray]" in capsys.readouterr().err
