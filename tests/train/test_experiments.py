"""The experiments: order, keys, caching and going on; the plan; statistics; tables and plots."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from la_trt.errors import GateError, InputError, MachineError, UsageError
from la_trt.lookworld import FAMILIES
from train.experiments.__main__ import main, write_results
from train.experiments.code import closure, code_version
from train.experiments.plan import (
    MAIN,
    SFTS,
    VARIANTS,
    WORLD,
    PlanConfig,
    checkpoint,
    eval_name,
    make_plan,
)
from train.experiments.plots import by_length
from train.experiments.runner import Runner, _locked, plan_table
from train.experiments.stages import MARKER, Stage, chosen, in_order, keys_of
from train.experiments.statistics import Counts, counts_of, difference, estimate, ratio
from train.planting import PLANTS


def stub(
    name: str, *words: str, kind: str = "stub", minutes: float = 3.0, keep: tuple[str, ...] = ()
) -> Stage:
    return Stage(
        name=name,
        kind=kind,
        module="tests.train.stub_stage",
        arguments=("{out}", *words),
        result="result.txt",
        minutes=minutes,
        keep=keep,
    )


def diamond(*words: str) -> list[Stage]:
    return [
        stub("d", "{b}/result.txt", "{c}/result.txt"),
        stub("b", "{a}/result.txt", *words),
        stub("c", "{a}/result.txt", "{@given}"),
        stub("a"),
    ]


def runner(stages: list[Stage], work: Path, code: str = "1", **options: Any) -> Runner:
    given = work.parent / "given"
    if not given.exists():
        given.write_text("G")
    return Runner(stages, {"given": given}, work, version=lambda modules: code, **options)


def go(of: Runner, **options: Any) -> list[str]:
    said: list[str] = []
    try:
        of.run(say=said.append, **options)
    finally:
        said.append("end")
    return [line.split(":")[0] for line in said if ": done" in line]


def test_stages_come_after_what_they_need() -> None:
    names = [stage.name for stage in in_order(diamond())]
    assert names == ["a", "b", "c", "d"]
    d, _, c, _ = diamond()
    assert d.needs == ("b", "c") and c.inputs == ("given",) and c.needs == ("a",)
    places = {"out": Path("/o"), "a": Path("/a"), "@given": Path("/g")}
    assert c.command(places) == ("tests.train.stub_stage", "/o", "/a/result.txt", "/g")
    quoted = stub("q", '{"clutter": 1.0}', "{}", "{ out }")
    assert quoted.needs == () and quoted.command(places)[2:] == (
        '{"clutter": 1.0}',
        "{}",
        "{ out }",
    )
    for stages, message in (
        ([stub("a", "{b}"), stub("b", "{a}")], "needs itself"),
        ([stub("a", "{x}")], "not in the plan"),
        ([stub("a"), stub("a")], "stands twice"),
    ):
        with pytest.raises(UsageError, match=message):
            in_order(stages)
    with pytest.raises(UsageError, match="no input"):
        keys_of([stub("a", "{@other}")], {}, lambda modules: "1")


def test_some_stages_with_what_they_need() -> None:
    assert [s.name for s in chosen(diamond(), "b|x")] == ["b", "a"]
    assert [s.name for s in chosen(diamond(), "d")] == ["d", "b", "c", "a"]
    for pattern in ("x", "b."):
        with pytest.raises(UsageError, match="no stage"):
            chosen(diamond(), pattern)
    with pytest.raises(UsageError, match="regular expression"):
        chosen(diamond(), "(")


def test_what_changes_a_key() -> None:
    def keys(stages: list[Stage], given: str = "x", code: str = "1") -> dict[str, Any]:
        return keys_of(stages, {"given": given}, lambda modules: code)

    first = keys(diamond())
    assert keys(diamond()) == first
    changed = {n for n, k in keys(diamond("more")).items() if k.full != first[n].full}
    assert changed == {"b", "d"}
    changed = {n for n, k in keys(diamond(), given="y").items() if k.full != first[n].full}
    assert changed == {"c", "d"}
    newer = keys(diamond(), code="2")
    assert all(newer[n].full != first[n].full for n in "abcd")
    assert all(newer[n].settings == first[n].settings for n in "abcd")


@pytest.mark.parametrize("jobs", [1, 3])
def test_stages_run_once(tmp_path: Path, jobs: int) -> None:
    work = tmp_path / "work"
    first = runner(diamond(), work)
    done = go(first, jobs=jobs)
    assert done[0] == "a" and done[-1] == "d" and sorted(done) == list("abcd")
    d = first.stages[-1]
    assert (first.directory(d) / "result.txt").read_text() == "a+b+a+G+c+d"
    assert go(runner(diamond(), work)) == []
    again = runner(diamond("more"), work)
    assert [stage.name for stage in again.remaining()] == ["b", "d"]
    assert go(again) == ["b", "d"]
    assert (first.directory(d) / "result.txt").exists()
    (tmp_path / "given").write_text("H")
    assert go(runner(diamond(), work)) == ["c", "d"]


def test_a_stage_that_fails(tmp_path: Path) -> None:
    work = tmp_path / "work"
    stages = [stub("bad", "fail"), stub("after", "{bad}/result.txt"), stub("other")]
    with pytest.raises(GateError, match=r"stages failed: bad; 2 were not run"):
        go(runner(stages, work))
    log = next((work / "bad").glob("*/log.txt"))
    assert "this went wrong" in log.read_text()
    with pytest.raises(GateError, match="bad; 1 were not run"):
        go(runner(stages, work), keep_going=True)
    assert [s.name for s in runner(stages, work).remaining()] == ["bad", "after"]
    with pytest.raises(GateError, match="empty"):
        go(runner([stub("empty", "nothing")], work))


def test_a_stage_goes_on_in_its_directory(tmp_path: Path) -> None:
    work, stages = tmp_path / "work", [stub("a", "fail-once")]
    with pytest.raises(GateError):
        go(runner(stages, work))
    assert go(runner(stages, work)) == ["a"]
    directory = runner(stages, work).directory(stages[0])
    assert (directory / "runs.txt").read_text() == "run\nrun\n"
    marker = json.loads((directory / MARKER).read_text())
    spent = json.loads((directory / "time.json").read_text())["minutes"]
    assert marker["minutes"] > 0 and spent > 0


def test_an_interruption_ends_the_processes(tmp_path: Path) -> None:
    work = tmp_path / "work"
    stages = [stub("slow", "sleep"), stub("next", "sleep")]

    def say(text: str) -> None:
        if text.startswith("next"):
            raise KeyboardInterrupt

    made = runner(stages, work)
    with pytest.raises(KeyboardInterrupt):
        made.run(jobs=2, say=say)
    assert [s.name for s in runner(stages, work).remaining()] == ["slow", "next"]
    with _locked(work), pytest.raises(MachineError, match="another process"):
        made.run(say=say)


def test_results_of_older_code(tmp_path: Path) -> None:
    work = tmp_path / "work"
    go(runner(diamond(), work, code="1"))
    newer = runner(diamond(), work, code="2")
    assert len(newer.remaining()) == 4 and newer.stale == []
    kept = runner(diamond(), work, code="2", keep_stale=True)
    assert kept.remaining() == [] and sorted(kept.stale) == list("abcd")
    assert "done by other code" in plan_table(kept, 2)
    other = runner(diamond("more"), work, code="2", keep_stale=True)
    assert [stage.name for stage in other.remaining()] == ["b", "d"]


def test_kept_results_outlive_the_machine(tmp_path: Path) -> None:
    """A training `t` with two evaluations; `only` is needed by the first of them alone."""
    work, kept = tmp_path / "work", tmp_path / "repository"
    stages = [
        stub("t", keep=("runs.txt",)),
        stub("only", "{t}/result.txt"),
        stub("e1", "{only}/result.txt", "{t}/result.txt", keep=("result.txt",)),
        stub("e2", "{t}/result.txt", keep=("result.txt",)),
    ]

    def fresh(of: list[Stage] = stages, code: str = "1") -> Runner:
        return runner(of, work, code, kept=kept)

    assert go(fresh()) == ["t", "only", "e1", "e2"]
    shutil.rmtree(work)
    again = fresh()
    assert again.remaining() == [] and go(again) == [] and again.stale == []
    results = [again.result(stage) for stage in again.stages]
    assert [made is None for made in results] == [False, True, False, False]
    assert results[2] is not None and results[2].minutes > 0
    assert (results[2].directory / "result.txt").read_text() == "t+only+t+e1"
    assert again.done(again.stages[2]) is None
    assert "not needed any more" in plan_table(again, 1) and "0 of 4 stages" in plan_table(again, 1)

    newer = fresh(code="2")
    assert newer.remaining() == [] and sorted(newer.stale) == ["e1", "e2", "t"]
    assert "done by other code" in plan_table(newer, 1)

    more = [*stages, stub("e3", "{t}/result.txt", keep=("result.txt",))]
    assert [s.name for s in fresh(more).remaining()] == ["t", "e3"]
    assert go(fresh(more)) == ["t", "e3"]

    shutil.rmtree(work)
    next(kept.glob("e1/*/result.txt")).unlink()
    assert [s.name for s in fresh(more).remaining()] == ["t", "only", "e1"]
    other = [stub("t", "more", keep=("runs.txt",)), *more[1:]]
    assert [s.name for s in fresh(other).remaining()] == ["t", "only", "e1", "e2", "e3"]


def test_kept_files_say_nothing_of_the_machine(tmp_path: Path) -> None:
    work, kept = tmp_path / "work", tmp_path / "repository"
    stage = stub("a", keep=("result.txt", "more.json"))
    made = runner([stage], work, kept=kept)
    directory = made.directory(stage)
    directory.mkdir(parents=True)
    found = {"model": f"{work}/t/x", "code": f"{Path(__file__).parents[2]}/la_trt", "n": [1, 2]}
    (directory / "more.json").write_text(json.dumps(found, indent=1))
    assert go(made) == ["a"]
    home = next(kept.glob("a/*"))
    assert (home / "more.json").read_text() == '{"model":"t/x","code":"la_trt","n":[1,2]}\n'
    assert all(str(work) not in path.read_text() for path in home.iterdir())


def test_an_input_that_is_gone(tmp_path: Path) -> None:
    """Without the checkpoint that it started from, what is kept is still known as its own."""
    work, kept, given = tmp_path / "work", tmp_path / "repository", tmp_path / "given"
    given.write_text("G")
    stages = [stub("a", "{@given}", keep=("result.txt",))]

    def made(of: list[Stage]) -> Runner:
        return Runner(of, {"given": given}, work, kept=kept, version=lambda modules: "1")

    assert go(made(stages)) == ["a"]
    shutil.rmtree(work)
    given.unlink()
    assert made(stages).remaining() == []
    more = made([*stages, stub("b", "{@given}")])
    with pytest.raises(InputError, match="is not there"):
        go(more)
    given.write_text("H")
    assert [s.name for s in made(stages).remaining()] == ["a"]


def test_the_plan_says_how_long_it_takes(tmp_path: Path) -> None:
    work = tmp_path / "work"
    stages = [stub("a", minutes=30.0), stub("b", kind="other", minutes=90.0)]
    text = plan_table(runner(stages, work), 2)
    assert "30.0 min (planned)" in text and "2 of 2 stages to run: 2.0 core hours, 1.0 h" in text
    go(runner(stages[:1], work))
    later = runner([*stages, stub("c", "x", minutes=30.0)], work)
    assert later.minutes(later.stages[2]) < 1
    assert "planned" not in next(x for x in plan_table(later, 1).splitlines() if x[0] == "c")


def test_code_versions(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("train/__init__.py", "")
    write("train/a.py", "import json\ndef f():\n    from train.b import g\n    return g()\n")
    write("train/b.py", "from la_trt import c\ndef g():\n    return 1\n")
    write("train/unused.py", "x = 1\n")
    write("la_trt/__init__.py", "")
    write("la_trt/c.py", "y = 2\n")
    names = {"train", "train.a", "train.b", "la_trt", "la_trt.c"}
    assert closure(["train.a"], tmp_path) == names
    first = code_version(["train.a"], tmp_path)
    write(
        "train/b.py",
        '"""Doc."""\nfrom la_trt import c  # why\n\n\ndef g():\n    """One."""\n    return 1\n',
    )
    write("train/unused.py", "x = 2\n")
    assert code_version(["train.a"], tmp_path) == first
    write("la_trt/c.py", "y = 3333\n")
    changed = code_version(["train.a"], tmp_path)
    assert changed != first
    write("csrc/kernels/cpu/k.cpp", "int k;")
    assert code_version(["train.a"], tmp_path) == changed
    write("la_trt/engines/__init__.py", "")
    write("la_trt/engines/native.py", "z = 1\n")
    write("la_trt/c.py", "y = 3333\nimport la_trt.engines.native\n")
    compiled = code_version(["train.a"], tmp_path)
    write("csrc/kernels/cpu/k.cpp", "long k;")
    assert code_version(["train.a"], tmp_path) != compiled
    with pytest.raises(UsageError, match="not a module"):
        closure(["train.z"], tmp_path)
    with pytest.raises(UsageError, match="not a module"):
        closure(["json"], tmp_path)


INPUTS = ("start", "shipped", "start-small", "picture")
SMALL = PlanConfig(seeds=(0, 1), sizes=("small",), scale=0.1, world={"clutter": 0.5})


def commands() -> dict[str, click.Command]:
    from la_trt.cli.app import app
    from train import attention, brpo, distill, looking, planting, sft

    made = {"train.attention": attention.main, "train.brpo": brpo.main, "la_trt.cli": app}
    made |= {"train.looking": looking.main, "train.planting": planting.main}
    return {**made, "train.distill": distill.main, "train.sft": sft.main}


def test_every_stage_of_the_plan_is_a_valid_command(tmp_path: Path) -> None:
    """The options are read by the commands themselves, which are not run."""
    known = commands()
    config = replace(SMALL, world={})
    places = {f"@{name}": tmp_path for name in INPUTS}
    stages = in_order(make_plan(config))
    for stage in stages:
        directory = tmp_path / stage.name
        for name in ("checkpoint", "answers.jsonl"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        places[stage.name] = directory
    for stage in stages:
        module, *arguments = stage.command({**places, "out": tmp_path / stage.name})
        command = known[module]
        if isinstance(command, click.Group):
            found = command.get_command(click.Context(command), arguments.pop(0))
            assert found is not None
            command = found
        context = command.make_context(stage.name, arguments)
        assert not context.args


def test_the_plan_shares_training() -> None:
    stages = make_plan(SMALL)
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    trained = {n for n in names if n.startswith("sft-") and n.endswith("-0") and n.count("-") == 2}
    assert trained == {f"sft-{name}-0" for name in SFTS}
    by_name = {v.name: v for v in VARIANTS}
    assert checkpoint(by_name["vision-only"], 1) == checkpoint(by_name["COPY"], 1)
    assert checkpoint(by_name["random 50"], 1) == checkpoint(by_name["ROUTE 0"], 1)
    for name in trained:
        stage = next(s for s in stages if s.name == name)
        assert stage.arguments[stage.arguments.index("--steps") + 1] == "30"
        assert stage.arguments[stage.arguments.index("--ckpt") + 1] == "{@start}"
    assert "eval-base-0-test" in names and "eval-base-1-test" not in names
    assert "eval-copy-from-nothing-0-test" in names
    assert "sft-copy-size-small-1" in names and "sft-text-main-1" in names
    mixed = next(s for s in stages if s.name == "sft-copy-captions-err-0")
    assert {"error_rate=0.5", "caption_error_frac=1.0"} <= set(mixed.arguments)
    asked = [next(s for s in stages if s.name == f"eval-copy-{label}-0-test-inverted").arguments[4:]
             for label in ("captions-err", "main")]  # fmt: skip
    assert {*asked[0]} - {*asked[1]} == {"{bundle-sft-copy-captions-err-0}/bundle"}  # no question


def test_the_plan_asks_first_what_matters_most() -> None:
    """Cut off anywhere, the main comparison stands before all else, seed by seed."""
    config = replace(SMALL, world=WORLD)
    stages = make_plan(config)
    assert [s.name for s in in_order(stages)] == [s.name for s in stages]
    measured = [s.name for s in stages if s.kind.startswith(("eval", "attention", "heatmap"))]
    planted = [s.name for s in stages if s.kind.startswith("planting")]
    assert planted[:2] == ["planting-text-only-0-test-inverted", "planting-copy-0-test-inverted"]
    assert planted[-1] == "planting-copy-captions-err-x4-1-test-inverted" and len(planted) == 16
    main = [eval_name(v, seed, "test-inverted") for seed in (0, 1) for v in MAIN]
    assert measured[: len(main)] == main
    last = stages.index(next(s for s in stages if s.name == main[-1]))
    read = ("eval", "looking", "planting")
    before = {s.name.rsplit("-", 1)[0] for s in stages[:last] if not s.kind.startswith(read)}
    trained = {"sft-text", "sft-copy", "sft-route"}
    asked = {f"bundle-{name}" for name in ("brpo", *trained)}
    assert before == {"brpo", "answers-zero", *trained, *asked}
    dials = [k for k, s in enumerate(stages) if any(f"-{d}-" in s.name for d in config.dials)]
    assert dials and min(dials) > max(k for k, s in enumerate(stages) if "-test" in s.name[-5:])
    by_name = {s.name: " ".join(s.arguments) for s in stages}
    assert "--world prior_strength=0.9 --world reasoning_length=3" in by_name["brpo-0"]
    assert '--world {"prior_strength": 0.9, "reasoning_length": 3}' in by_name["answers-zero-1"]
    assert "--prior-strength 0.9" in by_name[main[0]]
    assert "--prior-strength 0 " in by_name["eval-copy-prior_strength-0-1-test-inverted"] + " "
    for bad in ({"seeds": ()}, {"seeds": (1, 1)}, {"scale": 0.0}):
        with pytest.raises(UsageError):
            PlanConfig(**bad)  # type: ignore[arg-type]


def counts(*rows: list[float], den: float = 1.0) -> Counts:
    table = np.array(rows)
    keys = tuple(map(str, range(table.shape[1])))
    return Counts(num_SQ=table, den_SQ=np.full(table.shape, den), keys=keys)


def test_statistics_by_hand() -> None:
    a, b = counts([1, 0, 0, 0], [1, 1, 0, 0]), counts([1, 1, 0, 1], [1, 1, 0, 1])
    found = estimate(a)
    assert (found.value, found.by_seed) == (0.375, (0.25, 0.5))
    assert 0 <= found.low < 0.375 < found.high <= 1
    gap = difference(a, b)
    assert (gap.value, gap.by_seed) == (0.375, (0.5, 0.25))
    assert difference(a, a).low == difference(a, a).high == 0
    assert estimate(a) == found
    half = ratio(counts([2.0, 2], den=4), counts([1.0, 1], den=4))
    assert half is not None and (half.value, half.low, half.high) == (0.5, 0.5, 0.5)
    assert ratio(counts([0, 0]), counts([1, 0])) is None
    with pytest.raises(InputError, match="differ"):
        difference(a, counts([1, 0, 0, 0]))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for trial in range(60):
        draws = (rng.random((1, 111)) < 0.3).astype(float)
        of = estimate(counts(*draws.tolist()), seed=trial, num_resamples=400)
        inside += of.low <= 0.3 <= of.high
    assert 51 <= inside <= 60


def unit(family: str, index: int, right: bool, hallucinated: int = 0) -> list[Any]:
    found: dict[str, float] = {"n": 1, "right": float(right)}
    if family == "describe":
        found |= {"mentioned": 4, "hallucinated": hallucinated}
        found |= {"any": float(hallucinated > 0), "found": 0.5}
    category = "exist/random" if family == "exist" else family
    return [category, f"{family}/{index}", "abc", right, found]


def report(right_of_ten: int, hallucinated: int) -> dict[str, Any]:
    units = [
        unit(family, k, k < right_of_ten, hallucinated) for family in FAMILIES for k in range(10)
    ]
    means = ("format_frac", "truncated_frac", "tokens_mean", "reflections_mean")
    return {
        "units": units,
        "scores": {"POPE F1, mean": {"value": 0.9}},
        "answers": dict.fromkeys((*means, "reinjected_tokens_mean", "seconds_mean"), 0.75),
    }


def test_metrics_of_reports() -> None:
    reports = [report(5, 1), report(7, 3)]
    assert estimate(counts_of(reports, "accuracy")).by_seed == (0.5, 0.7)
    assert estimate(counts_of(reports, "accuracy exist")).by_seed == (0.5, 0.7)
    assert estimate(counts_of(reports, "CHAIRi")).by_seed == (0.25, 0.75)
    assert estimate(counts_of(reports, "CHAIRs")).value == 1
    assert estimate(counts_of(reports, "recall")).value == 0.5
    reports[1]["units"][0][2] = "other"
    with pytest.raises(InputError, match="different questions"):
        counts_of(reports, "accuracy")
    with pytest.raises(InputError, match="no question"):
        counts_of([], "accuracy")


def attention(inside: float) -> dict[str, Any]:
    curve = {name: [0.4, 0.3, 0.2, 0.2] for name in ("share", "theory")}
    law = {"r2": 0.9, "length": 40.0}
    laws = {
        form: {"exponential": law, "hyperbolic": {**law, "length": None}}
        for form in ("two_parameters", "with_floor")
    }
    return {
        "curve": curve,
        "theory_r2": 0.5,
        "before_reflection": 0.2,
        "after_reflection": inside,
        "inside_reflection": inside,
        "laws": laws,
        "laws_whole": laws,
        "described": [[length, 4, length % 3] for length in range(40, 60)],
    }


def looked(mends: bool) -> dict[str, int]:
    """Of ten answers five captions are right; of 40 entries ten are misread, at most two mended."""
    sums = {"answers": 10, "captions_right": 5, "correct_beside_right_caption": 4}
    sums |= {"correct_beside_wrong_caption": 1, "named": 40, "misread": 10, "spoiled": 3}
    sums |= {"misnamed": 8, "by_prior": 6}
    return sums | {"repeated": 35, "mended": 2 if mends else 0}


def finish(of: Runner, right: dict[str, int], only: str = "") -> None:
    """Write what the stages would have (of those whose name holds `only`): results, markers."""
    for stage in of.stages:
        if only not in stage.name:
            continue
        directory = of._own(stage)
        directory.mkdir(parents=True)
        (directory / stage.result).parent.mkdir(parents=True, exist_ok=True)
        value: Any = {}
        if stage.name.startswith("eval-"):
            ours = max((k for k in right if stage.name.startswith(f"eval-{k}")), key=len)
            value = report(right[ours], 1 if "copy" in ours else 2)
        elif stage.name.startswith("attention-"):
            value = attention(0.5 if "copy" in stage.name else 0.2)
        elif stage.name.startswith("looking-"):
            value = looked("copy" in stage.name)
        elif stage.name.startswith("planting-"):
            value = dict.fromkeys(PLANTS, looked("copy" in stage.name))
        elif stage.name.startswith("answers-"):
            names = ("asked", "kept", "corrected", "dropped", "kept_frac", "reflections_mean")
            value = dict.fromkeys(names, 1)
        elif stage.name.startswith("brpo-"):
            names = ("reflections", "reflection_tokens", "reward", "reward_accuracy")
            lines: list[dict[str, Any]] = [
                {"step": k, **dict.fromkeys((*names, "response_tokens"), k / 2)} for k in (1, 2)
            ]
            lines.append({"step": 2, "validation": {"all": 61.0}})
            (directory / "brpo.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (directory / stage.result).write_text(json.dumps(value))
        keys = of.keys[stage.name]
        marker = {"key": keys.full, "settings_key": keys.settings, "minutes": 1.0}
        (directory / MARKER).write_text(json.dumps(marker | {"kind": stage.kind}))


def test_results_are_written(tmp_path: Path) -> None:
    paths = dict.fromkeys(INPUTS, tmp_path / "given")
    (tmp_path / "given").write_text("G")
    stages = make_plan(SMALL)

    def made() -> Runner:
        return Runner(stages, paths, tmp_path / "work", version=lambda modules: "1")

    before = write_results(made(), SMALL, tmp_path / "before")
    assert len(before["missing"]) == len(stages) and before["variants"]["COPY"] == {}
    assert all(target["met"] is None for target in before["targets"])
    assert "stages have not been run" in (tmp_path / "before" / "README.md").read_text()
    finish(made(), {"": 5, "copy": 7, "copy-without": 5, "route-50": 6, "text-only": 5})
    values = write_results(made(), SMALL, tmp_path / "results")
    assert values["missing"] == [] and values["stale"] == []
    copy = values["variants"]["COPY"]["test-inverted"]
    assert copy["accuracy"]["by_seed"] == [0.7, 0.7] and copy["CHAIRi"]["value"] == 0.25
    gap = values["differences"]["COPY"]["test-inverted"]["accuracy"]
    assert gap["value"] == pytest.approx(0.2) and gap["low"] > 0
    met = {target["wanted"]: target["met"] for target in values["targets"]}
    assert len(met) == 6 and all(met.values())
    page = (tmp_path / "results" / "README.md").read_text()
    looking = "| COPY | 50.0 | 80.0 | 20.0 | 75.0 of 16 | 87.5 | 20.0 of 20 | 10.0 |"
    gains = ("+20.0 points", "0.50 x (0.50 to 0.50)", "2.50 x")
    planting = "| COPY, captions-err | 20.0 of 20 | 50.0 of 20 | 50.0 | 10.0 |"
    for text in (*gains, "| COPY kv |", "no decay", looking, planting):
        assert text in page
    pictures = sorted(p.name for p in (tmp_path / "results").glob("*.png"))
    drawn = "accuracy attention brpo dials hallucination heatmap-copy heatmap-route route"
    assert pictures == [f"{name}.png" for name in drawn.split()]
    assert all(f"![{name}]({name})" in page for name in pictures)
    assert json.loads((tmp_path / "results" / "results.json").read_text()) == values


def test_a_part_of_the_results(tmp_path: Path) -> None:
    """Of seed 0 the main comparison alone: its rows are there, name it, all else is missing."""
    paths = dict.fromkeys(INPUTS, tmp_path / "given")
    (tmp_path / "given").write_text("G")

    def made() -> Runner:
        return Runner(make_plan(SMALL), paths, tmp_path / "work", version=lambda modules: "1")

    right = {"": 5, "copy": 7}
    for variant in MAIN:
        finish(made(), right, eval_name(variant, 0, "test-inverted"))
    finish(made(), right, eval_name("text-only", 1, "test-inverted"))
    values = write_results(made(), SMALL, tmp_path / "results")
    rows = values["variants"]
    assert rows["COPY"]["test-inverted"]["seeds"] == [0] and "test" not in rows["COPY"]
    assert rows["text-only"]["test-inverted"]["seeds"] == [0, 1] and rows["COPY kv"] == {}
    gap = values["differences"]["COPY"]["test-inverted"]
    assert gap["seeds"] == [0] and gap["accuracy"]["by_seed"] == [pytest.approx(0.2)]
    page = (tmp_path / "results" / "README.md").read_text()
    for text in (
        "| COPY (seed 0 only) | 70.0 (",
        "| text-only | 50.0 (",
        "| COPY kv | missing | missing |",
        ", 1 of 2 seeds | yes |",
        "| clutter-1 | missing |",
    ):
        assert text in page, text
    assert sorted(p.name for p in (tmp_path / "results").glob("*.png")) == ["accuracy.png"]


def test_targets_that_are_missed_are_said_to_be(tmp_path: Path) -> None:
    paths = dict.fromkeys(INPUTS, tmp_path / "given")
    (tmp_path / "given").write_text("G")

    def made() -> Runner:
        return Runner(make_plan(SMALL), paths, tmp_path / "work", version=lambda modules: "1")

    finish(made(), {"": 5, "text-only": 6})
    values = write_results(made(), SMALL, tmp_path / "results")
    met = {target["wanted"]: target["met"] for target in values["targets"]}
    assert met["COPY at least 3 points of accuracy above text-only"] is False
    assert met["ROUTE 50 above random 50"] is False
    assert "| **no** |" in (tmp_path / "results" / "README.md").read_text()


def test_hallucination_by_length() -> None:
    rows = [[10 * k, 4, k] for k in range(1, 5)]
    assert by_length(rows, bins=2) == [(15.0, 37.5), (35.0, 87.5)]
    assert by_length([], bins=3) == [] and by_length([[5, 0, 0]], bins=3) == []


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--work", str(tmp_path / "w"), "--results", str(tmp_path / "r"), "--scale", "0.1"]
    main.main([*arguments, "--dry-run", "--seeds", "4"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "brpo-4" in out and "core hours" in out and not (tmp_path / "r").exists()
    main.main([*arguments, "--report-only", "--only", "heatmap-copy"], standalone_mode=False)
    assert (tmp_path / "r" / "README.md").exists()
    missing = json.loads((tmp_path / "r" / "results.json").read_text())["missing"]
    plan = make_plan(PlanConfig(scale=0.1, sizes=("layers-3",)))
    assert missing == [stage.name for stage in plan]
    with pytest.raises(InputError, match=r"no cold-start checkpoint.*\n.*--reattention none"):
        main.main([*arguments, "--start", str(tmp_path / "none")], standalone_mode=False)
    for bad in (["--seeds", "a"], ["--world", "clutter"], ["--jobs", "0"]):
        with pytest.raises(UsageError):
            main.main([*arguments, "--dry-run", *bad], standalone_mode=False)
