"""`build`, `info`, `doctor`, `bench`, `--version`, and what starting the program costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

import la_trt
from la_trt.cli import bench_report, checks, measure, trial
from la_trt.cli.checks import FLOORS, OPTIONAL_FLOORS, Check, at_least
from la_trt.errors import GateError
from la_trt.files.bundle import open_bundle
from tests.cli.conftest import RunCli

ROOT = Path(la_trt.__file__).parents[1]


def test_version(process: RunCli) -> None:
    outcome = process("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"la-trt {la_trt.__version__}\n", "")


def test_help_imports_nothing_heavy() -> None:
    """Of what is installed, click alone: nothing that takes a second to load."""
    code = (
        "import sys; before = set(sys.modules); from la_trt.cli.app import run; run(['--help']); "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("Usage: la-trt")
    assert done.stdout.splitlines()[-1] == "['click', 'la_trt']"


def test_no_command_needs_torch(
    tiny_checkpoint: Path, bundle: Path, shipped: Path, tmp_path: Path
) -> None:
    """Everything works where torch cannot be imported; what needs it says so."""
    ask = ["--prompt", "Hi", "--max-tokens", "2"]
    output = str(tmp_path / "x")
    calls: list[tuple[list[str], int]] = [
        (["build", "--ckpt", str(tiny_checkpoint), "--output", output], 0),
        (["infer", "--engine", str(bundle), *ask], 0),
        (["bench", "--engine", str(bundle), "--runs", "1", "--warmup", "0", *ask], 0),
        (["info", str(bundle)], 0),
        (["infer", "--ckpt", str(tiny_checkpoint), *ask], 5),
    ]
    code = (
        "import sys\n"
        "class Barred:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(f'no {name} here', name=name)\n"
        "sys.meta_path.insert(0, Barred())\n"
        "import la_trt, la_trt.api, build_engines.build\n"
        "from la_trt.cli.app import run\n"
        f"for args, expected in {calls!r}:\n"
        "    code = run(args)\n"
        "    assert code == expected, (args, code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "error[E_NO_TORCH]" in done.stderr


def test_build_says_what_it_made(cli: RunCli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    outcome = cli(
        *("build", "--ckpt", tiny_checkpoint, "--output", output, "--quant", "int8"),
        *("--block-size", 16, "--max-model-len", 512, "--max-pixels", 20000, "--min-pixels", 4000),
    )
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith(f"{output}: bundle of 0.") and "int8" in outcome.out
    manifest = open_bundle(output).manifest
    assert manifest.quant == "int8"
    assert (manifest.limits.max_model_len, manifest.limits.max_pixels) == (512, 20000)
    assert manifest.limits.min_pixels == 4000 and manifest.request["block_size"] == 16
    again = cli("build", "--ckpt", tiny_checkpoint, "--output", output)
    assert again.code == 0 and open_bundle(output).manifest.quant == "none"


def test_info(cli: RunCli, tiny_checkpoint: Path, bundle: Path) -> None:
    checkpoint = json.loads(cli("info", tiny_checkpoint, "--json").out)
    built = json.loads(cli("info", bundle, "--json").out)
    assert (checkpoint["kind"], built["kind"]) == ("checkpoint", "bundle")
    assert checkpoint["config"] == built["config"]
    assert checkpoint["parameters"] * 4 == checkpoint["weight_bytes"]
    assert checkpoint["dtypes"] == ["float32"] and built["quant"] == "none"
    assert checkpoint["tags"] == built["tags"] and None not in built["tags"].values()
    assert built["files"]["decoder.onnx"] == (bundle / "decoder.onnx").stat().st_size
    for path, kind in ((tiny_checkpoint, "checkpoint"), (bundle, "bundle")):
        text = cli("info", path).out
        assert text.startswith(kind) and "2 layers of 32" in text and "yes, at each" in text


def test_info_without_tags(cli: RunCli, tmp_path: Path) -> None:
    from tests.tiny import write_tiny_checkpoint

    path = write_tiny_checkpoint(tmp_path / "base", tags=("<SUMMARY>",))
    text = cli("info", path).out
    assert "1 of 10 are tokens, missing: </SUMMARY>" in text and "no: the vocabulary" in text


@pytest.mark.parametrize(
    ("size", "resized", "grid", "tokens"),
    [((100, 70), (112, 56), [1, 4, 8], 8), ((1, 1), (56, 56), [1, 4, 4], 4)],
)
def test_preprocess(
    cli: RunCli,
    bundle: Path,
    tmp_path: Path,
    size: tuple[int, int],
    resized: tuple[int, int],
    grid: list[int],
    tokens: int,
) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", size, "red").save(path)
    for prefix in ((), (bundle,)):
        facts = json.loads(cli("info", *prefix, "--preprocess", path, "--json").out)["preprocess"]
        assert facts["source_size"] == {"width": size[0], "height": size[1]}
        assert facts["resized_size"] == {"width": resized[0], "height": resized[1]}
        assert facts["grid_thw"] == grid and facts["visual_tokens"] == tokens
        assert facts["max_pixels"] == (50176 if prefix else 12845056)
    text = cli("info", "--preprocess", path).out
    assert f"{size[0]} x {size[1]} px" in text and f"visual tokens    {tokens}" in text


def test_doctor(cli: RunCli, shipped: Path) -> None:
    outcome = cli("doctor")
    assert outcome.code == 0, outcome.err
    rows = {line[8:29].strip(): line[:8].strip() for line in outcome.out.splitlines()}
    assert rows["engine onnx"] == "ok" and rows["onnxruntime"] == "ok"
    assert rows["engine tensorrt"] == "--"
    built = find_spec("la_trt._native") is not None
    assert rows["engine native"] == ("ok" if built else "--")
    facts = json.loads(cli("doctor", "--json").out)
    assert facts["ok"] and len(facts["checks"]) == len(rows)


def test_doctor_notices_an_engine_that_fails(
    cli: RunCli, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: object) -> list[int]:
        raise RuntimeError("the numbers were\nnot finite")

    monkeypatch.setattr(trial, "_ask", broken)
    outcome = cli("doctor", "--json")
    assert outcome.code == 5 and "error[E_DOCTOR]" in outcome.err
    facts = json.loads(outcome.out)
    found = {c["name"]: c for c in facts["checks"]}["engine onnx"]
    assert not facts["ok"] and found["status"] == "failed"
    assert found["detail"] == "RuntimeError: the numbers were not finite"


def test_doctor_notices_engines_that_disagree(
    cli: RunCli, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    answers = iter([[1, 2], [1, 3], [1, 4]])
    monkeypatch.setattr(trial, "_ask", lambda model: next(answers))
    outcome = cli("doctor")
    assert outcome.code == 5 and "FAILED  engine torch" in outcome.out
    assert find_spec("la_trt._native") is None or "FAILED  engine native" in outcome.out


def test_doctor_notices_old_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FLOORS, "numpy", "999.0")
    monkeypatch.setitem(FLOORS, "no-such-package", "1.0")
    monkeypatch.setitem(OPTIONAL_FLOORS, "more", {"no-such-option": "1.0", "click": "999.0"})
    found = {check.name: check for check in checks.package_checks()}
    assert found["numpy"].status == "failed" and "999.0 or newer" in found["numpy"].detail
    assert found["no-such-package"].status == "failed"
    option = found["no-such-option"]
    assert option.status == "absent" and "la-trt[more] needs 1.0 or newer" in option.detail
    old = [c for c in checks.package_checks() if c.name == "click" and c.status == "absent"]
    assert len(old) == 1 and "la-trt[more] needs 999.0" in old[0].detail
    assert found["pillow"] == Check(name="pillow", status="ok", detail=found["pillow"].detail)


@pytest.mark.parametrize(
    ("version", "floor", "expected"),
    [
        ("2.13.0+cpu", "2.10", True),
        ("2.9.1", "2.10", False),
        ("13.0.0", "13.0.0", True),
        ("13.0", "13.0.0", True),
        ("12.9.9", "13.0.0", False),
        ("1.31.0rc1", "1.31", True),
    ],
)
def test_versions_compare_as_numbers(version: str, floor: str, expected: bool) -> None:
    assert at_least(version, floor) is expected


def test_floors_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [f"{name}>={floor}" for name, floor in FLOORS.items()]
    extras = project["optional-dependencies"]
    for extra in ("train", "parquet", "serve"):
        packages = OPTIONAL_FLOORS[extra]
        assert [f"{name}>={floor}" for name, floor in packages.items()] == extras[extra]
    assert f"ray[data,serve]>={OPTIONAL_FLOORS['ray']['ray']}" in extras["ray"]


def test_bench(cli: RunCli, reflecting: Path, picture: Path, tmp_path: Path) -> None:
    plot = tmp_path / "bench.png"
    call = ("bench", "--engine", reflecting, "--image", picture, "--max-tokens", 5, "--runs", 3)
    policies = ("--policy", "copy", "--policy", "route", "--policy", "text", "--policy", "copy")
    outcome = cli(*call, *policies, "--warmup", 1, "--json", "--plot", plot)
    assert outcome.code == 0 and outcome.err == ""
    facts = json.loads(outcome.out)
    assert list(facts["policies"]) == ["copy", "route", "text", "copy (2)"]
    copy, text = facts["policies"]["copy"], facts["policies"]["text"]
    assert copy["reinjections"] == 4 and copy["reinjected_tokens"] == 32
    assert text["reinjections"] == 0 and text["completion_tokens"] == 5
    assert copy["metrics"]["reinject_gap_ms"]["n"] == 12
    assert copy["metrics"]["gap_ms"] == {"median": None, "p90": None, "p99": None, "n": 0}
    assert text["metrics"]["gap_ms"]["n"] == 12
    for policy in facts["policies"].values():
        for name, found in policy["metrics"].items():
            if found["n"]:
                ordered = [found["median"], found["p90"], found["p99"]]
                slower = ordered[::-1] if name in bench_report.RATES else ordered
                assert slower[0] >= 0 and slower == sorted(slower), name
        assert policy["metrics"]["ttft_ms"]["n"] == 3
        assert policy["metrics"]["peak_rss_mib"]["median"] > 20
    with Image.open(plot) as image:
        assert image.format == "PNG" and image.width > 800


def test_bench_table(cli: RunCli, reflecting: Path) -> None:
    call = ("bench", "--engine", reflecting, "--max-tokens", 4, "--runs", 1, "--warmup", 0)
    outcome = cli(*call, "--policy", "copy", "--policy", "never", "--route-percent", 10)
    assert outcome.code == 0 and outcome.err == ""
    lines = outcome.out.splitlines()
    assert lines[2].split() == ["median", "/", "p90", "/", "p99", "copy", "never"]
    assert [line.split()[-2:] for line in lines if line.startswith("second looks")] == [["3", "0"]]
    assert len({len(line) for line in lines[2:]}) == 1


def test_bench_fixed_length(cli: RunCli, tmp_path: Path) -> None:
    from build_engines.build import build
    from tests.tiny import write_tiny_checkpoint

    build(write_tiny_checkpoint(tmp_path / "ends", always=("<|im_end|>",)), tmp_path / "bundle")
    call = ("bench", "--engine", tmp_path / "bundle", "--policy", "never", "--runs", 1, "--json")
    call = (*call, "--max-tokens", 6)
    natural = json.loads(cli(*call).out)["policies"]["never"]
    fixed = json.loads(cli(*call, "--fixed-length").out)["policies"]["never"]
    assert (natural["completion_tokens"], natural["finish_reason"]) == (1, "stop")
    assert (fixed["completion_tokens"], fixed["finish_reason"]) == (6, "length")


def test_bench_refuses_answers_that_differ(
    cli: RunCli, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = measure._run_once, iter(range(100))

    def unsteady(model: object, request: object, options: object, into: measure.Measured) -> None:
        original(model, request, options, into)  # type: ignore[arg-type]
        into.results[0].tokens[0] = next(count)

    monkeypatch.setattr(measure, "_run_once", unsteady)
    outcome = cli("bench", "--engine", bundle, "--policy", "never", "--runs", 2, "--max-tokens", 2)
    assert outcome.code == GateError.exit_code and outcome.out == ""
    assert "error[E_NOT_REPEATABLE]: policy never" in outcome.err


def test_quantiles() -> None:
    found = bench_report._quantiles([float(n) for n in range(101)])
    assert found == {"median": 50.0, "p90": 90.0, "p99": 99.0, "n": 101}
    found = bench_report._quantiles([float(n) for n in range(101)], rate=True)
    assert found == {"median": 50.0, "p90": 10.0, "p99": 1.0, "n": 101}
