"""`la-trt eval` and `la-trt eval compare` from the command line."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from la_trt.assets import TINY_CHECKPOINT
from la_trt.cli.source import Source
from la_trt.eval.store import Run
from tests.cli.conftest import RunCli, cli  # noqa: F401
from tests.eval.scripted import ScriptedModel, concluded, picture

Lines = list[dict[str, Any]]


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """Ten questions, every other one to be answered with yes."""
    picture(tmp_path / "a.jpg")
    rows = [
        {"question_id": n, "image": "a.jpg", "text": f"Is there {n}?"}
        | {"label": "yes" if n % 2 else "no"}
        for n in range(10)
    ]
    path = tmp_path / "coco_pope_random.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for a model which says yes to everything."""

    def opened(source: Source, limits: object = None, **options: object) -> ScriptedModel:
        assert source.engine is not None
        reply = concluded((source.engine / "says").read_text())
        return ScriptedModel(lambda question: reply, max_batch=source.max_batch)

    monkeypatch.setattr(Source, "open", opened)
    path = tmp_path / "model"
    path.mkdir()
    (path / "says").write_text("Yes")
    return path


def test_a_suite(cli: RunCli, model: Path, pope: Path, tmp_path: Path) -> None:  # noqa: F811
    args = ("eval", "--engine", model, "--suite", "pope", "--data", pope, "--output")
    done = cli(*args, tmp_path / "a", "--policy", "route", "--route-percent", 25, "--batch", 3)
    assert (done.code, done.err) == (0, "")
    assert done.out == (tmp_path / "a" / "report.md").read_text()
    # Yes to all: precision 1/2, recall 1.
    assert "| POPE F1, random | 66.7 | " in done.out
    saved = json.loads((tmp_path / "a" / "run.json").read_text())
    assert saved["asked"]["policy"]["select"] == {"kind": "route", "percent": 25.0}
    assert saved["asked"]["max_tokens"] == 1024 and saved["run"]["batch"] == 3
    as_json = cli(*args, tmp_path / "a", "--policy", "route", "--route-percent", 25, "--json")
    found = json.loads(as_json.out)
    assert found["scores"]["POPE yes share, random"]["value"] == 1.0 and "units" not in found
    assert found["asked"] == saved["asked"]


def test_limit_and_resume(cli: RunCli, model: Path, pope: Path, tmp_path: Path) -> None:  # noqa: F811
    output = tmp_path / "out"
    args = ("eval", "--engine", model, "--suite", "pope", "--data", pope, "--output", output)
    assert cli(*args, "--limit", 4).code == 0
    answers = output / "answers.jsonl"
    first = answers.read_text()
    assert len(first.splitlines()) == 4
    assert cli(*args).code == 0
    assert answers.read_text().startswith(first) and len(answers.read_text().splitlines()) == 10
    other = cli(*args, "--seed", 5)
    assert other.code == 2 and "error[E_RESUME]" in other.err and "seed 0, now 5" in other.err
    (model / "says").write_text("No")
    changed = cli(*args)
    assert changed.code == 2 and "model" in changed.err
    assert cli(*args, "--seed", 5, "--no-resume", "--limit", 2).code == 0
    assert len(answers.read_text().splitlines()) == 2


def test_ctrl_c_says_that_the_same_command_goes_on(
    cli: RunCli,  # noqa: F811
    model: Path,
    pope: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    args = ("eval", "--engine", model, "--suite", "pope", "--data", pope, "--output", output)
    real = Run.append

    def append(self: Run, record: dict[str, Any]) -> None:
        if len(self.answers) == 3:
            raise KeyboardInterrupt
        real(self, record)

    monkeypatch.setattr(Run, "append", append)
    stopped = cli(*args)
    goes_on = f"la-trt: interrupted: the same command goes on from {output}"
    assert (stopped.code, stopped.err.splitlines()[-1]) == (130, goes_on)
    monkeypatch.setattr(Run, "append", real)
    assert cli(*args).code == 0
    assert len((output / "answers.jsonl").read_text().splitlines()) == 10


def test_compare(cli: RunCli, model: Path, pope: Path, tmp_path: Path) -> None:  # noqa: F811
    args = ("eval", "--engine", model, "--suite", "pope", "--data", pope, "--output")
    assert cli(*args, tmp_path / "a").code == 0
    (model / "says").write_text("No")
    assert cli(*args, tmp_path / "b").code == 0
    done = cli("eval", "compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c")
    assert (done.code, done.err) == (0, "")
    assert "| POPE F1, random | 66.7 | 0.0 | -66.7 | " in done.out
    assert "| right in one alone; McNemar p | 5 | 5 | p = 1 |" in done.out
    assert (tmp_path / "c" / "compare.md").read_text() == done.out
    found = json.loads(cli("eval", "compare", tmp_path / "a", tmp_path / "b", "--json").out)
    assert found == json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [d["name"] for d in found["differs"]] == ["model"]
    missing = cli("eval", "compare", tmp_path / "a", tmp_path / "none")
    assert missing.code == 3 and "error[E_RUN]" in missing.err and missing.out == ""
    assert cli("eval", "compare", tmp_path / "a").code == 2


def test_an_output_of_something_else_is_refused_before_loading(
    cli: RunCli,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "letter.txt").write_text("x")
    args = ("eval", "--engine", tmp_path / "none", "--suite", "lookworld", "--output")
    for output in (tmp_path, tmp_path / "letter.txt"):
        done = cli(*args, output)
        assert done.code == 5 and "error[E_OUTPUT_EXISTS]" in done.err


def test_flags_before_compare_are_refused(cli: RunCli, tmp_path: Path) -> None:  # noqa: F811
    done = cli("eval", "--seed", 3, "compare", tmp_path, tmp_path)
    assert done.code == 2 and "--seed has no effect on la-trt eval compare" in done.err
    assert cli("eval", "compare", tmp_path, tmp_path, "--seed", -1).code == 2
    assert "No such command 'compre'" in cli("eval", "compre", tmp_path, tmp_path).err


def test_questions_that_cannot_be_asked_are_told(
    cli: RunCli,  # noqa: F811
    model: Path,
    pope: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "b.jpg").write_bytes(b"no image")
    row = {"question_id": 99, "image": "b.jpg", "text": "Is there one?", "label": "yes"}
    with pope.open("a") as file:
        file.write(json.dumps(row) + "\n")
    args = ("eval", "--engine", model, "--suite", "pope", "--data", pope)
    done = cli(*args, "--output", tmp_path / "o")
    assert done.code == 0 and "| POPE F1, random | 66.7 | " in done.out
    assert done.err.startswith(
        "la-trt: warning: 1 questions could not be asked: question random-99"
    )
    assert len(done.err.splitlines()) == 1


def test_bad_rows_are_one_warning(
    cli: RunCli,  # noqa: F811
    model: Path,
    pope: Path,
    tmp_path: Path,
) -> None:
    with pope.open("a") as file:
        file.write('{"question_id": 11}\n{broken\n' + '{"question_id": 12}\n' * 3)
    args = ("eval", "--engine", model, "--suite", "pope", "--data", pope)
    done = cli(*args, "--output", tmp_path / "a")
    assert done.code == 0 and "| bad rows, skipped | 5 |" in done.out
    (warning,) = done.err.splitlines()
    assert warning.startswith("la-trt: warning: ")
    assert "5 bad rows skipped: coco_pope_random.json row 11: label ''" in warning
    assert warning.endswith("; ...")
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["num_bad_rows"] == 5 and "row 12: not valid JSON" in report["bad_rows"][1]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ([], "--suite is missing"),
        (["--suite", "pope"], "--output is missing"),
        (["--suite", "quiz", "--output", "o"], "quiz"),
        (["--suite", "pope", "--output", "o"], "--data is missing"),
        (["--suite", "lookworld", "--output", "o", "--data", "x"], "--data has no effect"),
        (["--suite", "pope", "--data", "x", "--output", "o", "--split", "test"], "--split has no"),
        (["--suite", "mme", "--data", "x", "--output", "o", "--no-circular"], "--circular has no"),
        (["--suite", "lookworld", "--output", "o", "--clutter", "2"], "clutter"),
        (["--suite", "lookworld", "--output", "o", "--image-size", "big"], "--image-size"),
        (["--suite", "lookworld", "--output", "o", "--image-size", "225x224"], "225x224"),
        (["--suite", "lookworld", "--output", "o", "--min-objects", "11"], "min_objects"),
        (["--suite", "lookworld", "--output", "o", "--batch", "0"], "--batch"),
        (["--suite", "lookworld", "--output", "o", "--limit", "0"], "--limit"),
        (["--suite", "lookworld", "--output", "o", "--policy", "frob"], "frob"),
        (["--suite", "lookworld", "--output", "o", "--temperature", "-1"], "temperature"),
        (["--suite", "lookworld", "--output", "o", "--max-tokens", "0"], "max_tokens"),
        (["--suite", "lookworld", "--output", "o", "--engine", "a", "--ckpt", "b"], "--ckpt"),
    ],
)
def test_usage(
    cli: RunCli,  # noqa: F811
    args: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("eval", *args)
    assert done.code == 2 and done.out == "" and part in done.err, done.err
    assert done.err.startswith("la-trt: error[") and len(done.err.splitlines()) <= 3
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("content", ["", "<html>\n", '{"a": 1}\n', "\x00" * 50])
def test_a_wrong_file(
    cli: RunCli,  # noqa: F811
    model: Path,
    tmp_path: Path,
    content: str,
) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    args = ("--suite", "pope", "--data", tmp_path / "x.jsonl", "--output", tmp_path / "o")
    done = cli("eval", "--engine", model, *args)
    assert done.code == 3 and done.err.startswith("la-trt: error[E_DATASET]: ")
    assert len(done.err.splitlines()) <= 3 and done.out == ""


def test_the_dials_are_saved(cli: RunCli, model: Path, tmp_path: Path) -> None:  # noqa: F811
    args = ("--suite", "lookworld", "--num-per-family", 1, "--family", "sum", "--family", "count")
    dials = ("--clutter", 1, "--prior-strength", 0.9, "--split", "test-inverted")
    more = ("--image-size", "168x112", "--max-objects", 8, "--reasoning-length", 2)
    done = cli("eval", "--engine", model, *args, *dials, *more, "--output", tmp_path / "o")
    assert done.code == 0 and done.err == (
        "la-trt: warning: --reasoning-length is written into the report; it changes no question\n"
    )
    assert done.out.startswith("lookworld (test-inverted) of ") and "| accuracy | 0.0 |" in done.out
    asked = json.loads((tmp_path / "o" / "run.json").read_text())["asked"]
    assert asked["split"] == "test-inverted" and asked["max_tokens"] == 700
    world = asked["world"]
    assert (world["clutter"], world["prior_strength"], world["sizes"]) == (1.0, 0.9, [[168, 112]])
    assert (world["max_objects"], world["reasoning_length"]) == (8, 2)
    lines = [json.loads(x) for x in (tmp_path / "o" / "answers.jsonl").read_text().splitlines()]
    assert sorted(line["category"] for line in lines) == ["count", "sum"]


def test_numbers_that_are_not_finite_fail_the_run(
    cli: RunCli,  # noqa: F811
    model: Path,
    pope: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(source: Source, limits: object = None, **options: object) -> ScriptedModel:
        import numpy as np

        broken = ScriptedModel(lambda question: "x")
        broken.engine.script = lambda entries: np.full(300, np.nan, np.float32)
        return broken

    monkeypatch.setattr(Source, "open", opened)
    args = ("--suite", "pope", "--data", pope, "--output", tmp_path / "o", "--limit", 2)
    done = cli("eval", "--engine", model, *args)
    assert done.code == 6 and "error[E_NUMERICAL]" in done.err and "2 answers" in done.err
    assert (tmp_path / "o" / "report.json").is_file()


@pytest.mark.skipif(not (TINY_CHECKPOINT / "config.json").exists(), reason="no shipped checkpoint")
def test_the_shipped_model_answers(cli: RunCli, tmp_path: Path) -> None:  # noqa: F811
    """End to end: the bundle of the shipped checkpoint on two questions, asked together."""
    from build_engines.build import build

    build(TINY_CHECKPOINT, tmp_path / "bundle")
    args = ("--suite", "lookworld", "--num-per-family", 1, "--family", "place", "--family", "exist")
    done = cli(
        "eval", "--engine", tmp_path / "bundle", "--threads", 1, *args, "--output", tmp_path / "o"
    )
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    default = "native" if find_spec("la_trt._native") else "onnx"
    assert report["num_units"] == 2 and report["asked"]["engine"]["name"] == default
    kept = "float32" if default == "native" else None  # named, though nobody asked for it
    assert report["asked"]["engine"]["kv_dtype"] == kept
    assert report["answers"]["tokens_mean"] > 20 and report["answers"]["truncated_frac"] == 0
    assert report["answers"]["reinjected_tokens_mean"] > 0
    lines = [json.loads(x) for x in (tmp_path / "o" / "answers.jsonl").read_text().splitlines()]
    assert {line["answer"] for line in lines} <= {"left", "right", "top", "bottom", "Yes", "No"}
