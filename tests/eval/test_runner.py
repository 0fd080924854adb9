"""Asking, keeping, resuming, reporting, comparing: with the real session on a scripted engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from la_trt.api import make_options
from la_trt.errors import InputError, MachineError, UsageError
from la_trt.eval.items import IMAGE, BadRow, Item
from la_trt.eval.report import compare, compare_table, make_report, report_table
from la_trt.eval.runner import ask
from la_trt.eval.store import ANSWERS, open_run, read_report
from la_trt.eval.suites.choice import MMStar
from tests.eval.scripted import ScriptedModel, concluded, picture

SETTINGS: dict[str, Any] = {
    "asked": {
        "suite": "mmstar",
        "split": "val",
        "engine": {"name": "scripted", "dtype": "float32"},
        "policy": {"name": "copy", "inject": "kv"},
    },
    "run": {"batch": 1, "model": "out/x"},
}
ROUTE = {"name": "route", "inject": "kv"}
OPTIONS = make_options(policy="copy", max_tokens=300)
SUITE = MMStar()


def items_in(directory: Path, num: int = 9) -> list[Item]:
    """Questions whose right answers are A, B, C in turn."""
    image = picture(directory / "picture.png")
    return [
        Item(
            id=str(n),
            unit=str(n),
            category="even" if n % 2 == 0 else "odd",
            parts=(IMAGE, f"Question {n}?"),
            images=(image,),
            expected="ABC"[n % 3],
            detail={"options": {"A": "x", "B": "y", "C": "z"}},
        )
        for n in range(num)
    ]


def always(letter: str) -> ScriptedModel:
    return ScriptedModel(lambda question: concluded(letter))


def run_all(
    path: Path, items: list[Item], model: ScriptedModel, *, resume: bool = True, **settings: Any
) -> dict[str, Any]:
    made = {**SETTINGS, "asked": {**SETTINGS["asked"], **settings}}
    with open_run(path, made, resume=resume) as run:
        bad = ask(model, SUITE, items, OPTIONS, run)  # type: ignore[arg-type]
        report = make_report(SUITE, items, run.answers, bad, made, seed=0, num_resamples=50)
        run.write_report(report, report_table(report))
    return report


def test_a_run(tmp_path: Path) -> None:
    items = items_in(tmp_path)
    seen: list[tuple[int, int, int]] = []
    model = always("A")
    with open_run(tmp_path / "run", SETTINGS, resume=True) as run:
        bad = ask(model, SUITE, items, OPTIONS, run, progress=lambda *n: seen.append(n))  # type: ignore[arg-type]
        report = make_report(SUITE, items, run.answers, bad, SETTINGS, seed=0, num_resamples=50)
        run.write_report(report, report_table(report))
    assert bad == []
    assert [n[:2] for n in seen] == [(n, 9) for n in range(10)] and seen[-1][2] == 3
    assert report["scores"]["accuracy"]["value"] == pytest.approx(3 / 9)
    assert report["scores"]["accuracy, even"]["value"] == pytest.approx(2 / 5)
    assert (report["answers"]["format_frac"], report["answers"]["truncated_frac"]) == (1.0, 0.0)
    assert max(len(step.slots) for step in model.engine.steps) == 4
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "answers.jsonl",
        "report.json",
        "report.md",
        "run.json",
    ]
    assert read_report(tmp_path / "run") == json.loads(json.dumps(report))
    table = (tmp_path / "run" / "report.md").read_text()
    assert "| accuracy | 33.3 | " in table and table.count("\n| ---") == 1
    first = json.loads((tmp_path / "run" / ANSWERS).read_text().splitlines()[0])
    assert first["answer"] == first["said"] == "A" and first["expected"] in "ABC"
    assert first["text"] == concluded("A") and first["question"].startswith("Question")


def test_an_answer_depends_on_nothing_but_its_question(tmp_path: Path) -> None:
    """Sampled answers: the same in another batch, another order, or another run."""
    items = items_in(tmp_path, 7)
    options = make_options(policy="never", max_tokens=30, temperature=5.0, seed=3)

    def texts(name: str, batch: int, order: list[Item]) -> dict[str, str]:
        model = ScriptedModel(lambda question: "A" * 20, max_batch=batch)
        with open_run(tmp_path / name, SETTINGS, resume=True) as run:
            ask(model, SUITE, order, options, run)  # type: ignore[arg-type]
            return {key: record["text"] for key, record in run.answers.items()}

    one = texts("a", 1, items)
    assert one == texts("b", 5, items[::-1])
    assert len(set(one.values())) == 7


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    items = items_in(tmp_path)
    whole = run_all(tmp_path / "whole", items, always("A"))

    class Stop(Exception):
        pass

    def stop_after_three(done: int, total: int, right: int) -> None:
        if done == 3:
            raise Stop

    first = always("A")
    with pytest.raises(Stop), open_run(tmp_path / "run", SETTINGS, resume=True) as run:
        ask(first, SUITE, items, OPTIONS, run, progress=stop_after_three)  # type: ignore[arg-type]
    assert not first.engine.kv
    kept = (tmp_path / "run" / ANSWERS).read_text()
    assert len(kept.splitlines()) >= 3
    second = always("A")
    report = run_all(tmp_path / "run", items, second)
    assert len(second.asked) == 9 - len(kept.splitlines())
    assert (tmp_path / "run" / ANSWERS).read_text().startswith(kept)
    assert report["scores"] == whole["scores"] and report["units"] == whole["units"]
    third = always("B")
    assert run_all(tmp_path / "run", items, third)["scores"] == whole["scores"]
    assert third.asked == []


@pytest.mark.parametrize("torn", [b'{"id": "8", "te', b'{"id": "8"}\n', b"\x00\x00\n", b"\xff"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    items = items_in(tmp_path)
    whole = run_all(tmp_path / "run", items, always("A"))
    path = tmp_path / "run" / ANSWERS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + torn)
    again = always("A")
    with open_run(tmp_path / "run", SETTINGS, resume=True) as run:
        assert run.repaired_bytes == len(torn) and len(run.answers) == 5
    assert run_all(tmp_path / "run", items, again)["units"] == whole["units"]
    assert len(again.asked) == 4
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_damage_in_the_middle_is_no_torn_line(tmp_path: Path) -> None:
    run_all(tmp_path / "run", items_in(tmp_path), always("A"))
    path = tmp_path / "run" / ANSWERS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"garbage\n", *lines[2:]]))
    before = path.read_bytes()
    with pytest.raises(InputError, match="line 2") as caught:
        run_all(tmp_path / "run", items_in(tmp_path), always("A"))
    assert caught.value.name == "E_RUN" and path.read_bytes() == before


def test_other_options_are_refused_or_start_afresh(tmp_path: Path) -> None:
    items = items_in(tmp_path)
    run_all(tmp_path / "run", items, always("A"))
    with pytest.raises(UsageError, match=r'policy.name "copy", now "route"') as caught:
        run_all(tmp_path / "run", items, always("B"), policy=ROUTE)
    assert caught.value.name == "E_RESUME" and "--no-resume" in str(caught.value)
    report = run_all(tmp_path / "run", items, always("B"), resume=False, policy=ROUTE)
    assert report["asked"]["policy"] == ROUTE
    assert {unit[1] for unit in report["units"] if unit[3]} == {"1", "4", "7"}


def test_other_data_are_refused(tmp_path: Path) -> None:
    items = items_in(tmp_path)
    run_all(tmp_path / "run", items, always("A"))
    changed = [
        *items[:-1],
        Item(**{f: getattr(items[-1], f) for f in Item.__slots__} | {"expected": "A"}),
    ]
    with pytest.raises(UsageError, match="the data differ") as caught:
        run_all(tmp_path / "run", changed, always("A"))
    assert caught.value.name == "E_RESUME"


def test_more_questions_go_on_from_what_is_there(tmp_path: Path) -> None:
    items = items_in(tmp_path)
    run_all(tmp_path / "run", items[:4], always("A"))
    more = always("A")
    report = run_all(tmp_path / "run", items, more)
    assert more.asked == [f"Question {n}?" for n in range(4, 9)] and report["num_units"] == 9
    fewer = run_all(tmp_path / "run", items[:2], always("A"))
    assert fewer["num_units"] == 2


def test_questions_that_cannot_be_asked_are_bad_rows(tmp_path: Path) -> None:
    items = items_in(tmp_path, 5)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    fields = {name: getattr(items[2], name) for name in Item.__slots__}
    items[2] = Item(**{**fields, "images": (tmp_path / "broken.png",)})
    items[3] = Item(**{**fields, "id": "3", "unit": "3", "parts": (IMAGE, "long " * 2000)})
    report = run_all(tmp_path / "run", items, always("A"))
    assert report["num_bad_rows"] == report["num_incomplete_units"] == 2
    assert report["num_units"] == 3
    assert report["bad_rows"][0].startswith("question 2: image")
    assert "tokens" in report["bad_rows"][1]
    with pytest.raises(InputError, match="no question could be asked"):
        run_all(tmp_path / "none", items[2:4], always("A"))


def test_directories(tmp_path: Path) -> None:
    items = items_in(tmp_path, 2)
    (tmp_path / "file").write_text("x")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("x")
    for name in ("file", "home"):
        for resume in (True, False):
            with pytest.raises(MachineError) as caught:
                run_all(tmp_path / name, items, always("A"), resume=resume)
            assert caught.value.name == "E_OUTPUT_EXISTS"
    assert (tmp_path / "home" / "letter.txt").read_text() == "x"
    with open_run(tmp_path / "deep" / "run", SETTINGS, resume=True):
        with pytest.raises(MachineError) as caught:
            run_all(tmp_path / "deep" / "run", items, always("A"))
        assert caught.value.name == "E_LOCKED"
    assert run_all(tmp_path / "deep" / "run", items, always("A"))["num_units"] == 2


def test_a_report_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no evaluation"):
        read_report(tmp_path)
    with open_run(tmp_path / "run", SETTINGS, resume=True):
        pass
    with pytest.raises(InputError, match="not finished"):
        read_report(tmp_path / "run")
    for content in ("{}", "[1]", "{", '{"suite": "mmstar", "units": 3}'):
        (tmp_path / "run" / "report.json").write_text(content)
        with pytest.raises(InputError) as caught:
            read_report(tmp_path / "run")
        assert caught.value.name == "E_RUN"


def test_compare_by_hand(tmp_path: Path) -> None:
    """A says A: right in 0, 3, 6. B says B to 1, else A: right in 0, 1, 3, 6."""
    items = items_in(tmp_path)
    a = run_all(tmp_path / "a", items, always("A"))
    better = ScriptedModel(lambda q: concluded("B" if q == "Question 1?" else "A"))
    b = run_all(tmp_path / "b", items[::-1], better, policy=ROUTE)
    found = compare(a, b, num_resamples=400)
    score = found["scores"]["accuracy"]
    assert score["difference"] == pytest.approx(1 / 9)
    assert score["low"] == 0.0 and 1 / 9 < score["high"] < 0.5
    assert found["mcnemar"] == {"only_a": 0, "only_b": 1, "p": 1.0}
    assert found["differs"] == [{"name": "policy.name", "a": "copy", "b": "route"}]
    assert compare(b, a, num_resamples=400)["scores"]["accuracy"]["difference"] < 0
    table = compare_table(found, ("a|x", "b"))
    assert "| accuracy | 33.3 | 44.4 | 11.1 | 0.0 to " in table
    assert "\n| metric | a/x | b |" in table and "| 0 | 1 | p = 1 |" in table
    assert table.startswith(
        'mmstar, b against a/x. Shares are in %.\n- policy.name: "copy" -> "route"\n\n'
    )
    assert report_table(b).startswith(
        "mmstar (val) of out/x, scripted float32, policy route by kv, 9 units. Shares are in %.\n"
    )


def test_runs_of_other_questions_are_not_compared(tmp_path: Path) -> None:
    items = items_in(tmp_path)
    a = run_all(tmp_path / "a", items, always("A"))
    fewer = run_all(tmp_path / "b", items[:7], always("A"))
    for pair, part in (((a, fewer), "2 only in the first"), ((fewer, a), "2 only in the second")):
        with pytest.raises(InputError, match=part) as caught:
            compare(*pair)
        assert caught.value.name == "E_COMPARE"
    changed = json.loads(json.dumps(a))
    changed["units"][4][2] = "0" * 16
    with pytest.raises(InputError, match="not the same in both"):
        compare(a, changed)
    with pytest.raises(InputError, match="different suites"):
        compare(a, {**a, "suite": "pope"})
    for damaged in ([[1]], [7], [["even", "0", "x", True]], [["even", "0", "x", True, {}]]):
        with pytest.raises(InputError, match="damaged") as caught:
            compare({**a, "units": damaged}, {**a, "units": damaged})
        assert caught.value.name == "E_RUN"


def test_units_without_all_their_answers_are_left_out(tmp_path: Path) -> None:
    items = items_in(tmp_path, 3)
    answers = {"0": {"text": concluded("A"), "sha256": items[0].sha256, "finish_reason": "length"}}
    bad = [BadRow(where="f row 2", reason="r")]
    report = make_report(SUITE, items, answers, bad, SETTINGS, seed=0, num_resamples=9)
    assert (report["num_units"], report["num_incomplete_units"]) == (1, 2)
    assert report["scores"]["accuracy"]["low"] is None
    assert report["answers"]["truncated_frac"] == 1.0
    assert "| accuracy | 100.0 | - | 1 |" in report_table(report)
    with pytest.raises(InputError, match="no question was answered"):
        make_report(SUITE, items, {}, bad, SETTINGS, seed=0)


_KILLED = """
import sys
from pathlib import Path
from la_trt.eval.runner import ask
from la_trt.eval.store import open_run
from tests.eval.test_runner import OPTIONS, SETTINGS, SUITE, always, items_in
root = Path(sys.argv[1])
with open_run(root / "run", SETTINGS, resume=True) as run:
    def wait_for_death(answered, num, right):
        if answered == 2:
            print(flush=True)
            sys.stdin.read()
    ask(always("A"), SUITE, items_in(root), OPTIONS, run, progress=wait_for_death)
"""


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None and process.stdout.read(1) == b"\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / ANSWERS).read_bytes().count(b"\n") == 2
    model = always("A")
    report = run_all(tmp_path / "run", items_in(tmp_path), model)
    assert report["num_units"] == 9 and len(model.asked) == 7
    whole = run_all(tmp_path / "whole", items_in(tmp_path), always("A"))
    assert report["units"] == whole["units"] and report["scores"] == whole["scores"]
