"""What a person reads: help, refusals that name the cause, output that suits the terminal."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from PIL import Image

import la_trt.cli.app as app_module
from build_engines.build import build
from la_trt.cli import bench_report, checks, infer, options, terminal
from la_trt.cli.app import run
from la_trt.errors import MachineError, UsageError
from la_trt.events import TokenEvent
from la_trt.files import atomic
from tests.cli.conftest import RunCli
from tests.cli.test_errors import assert_refused

ASK = ("--prompt", "Hi", "--max-tokens", 2)


@pytest.fixture(scope="module")
def short(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with room for 128 tokens."""
    path = tmp_path_factory.mktemp("short") / "bundle"
    build(tiny_checkpoint, path, max_model_len=128)
    return path


def test_without_a_command_the_help_comes_as_it_is(cli: RunCli) -> None:
    outcome = cli()
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == cli("--help").out


def test_an_encoding_that_lacks_a_character(process: RunCli, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "日.png"
    Image.new("RGB", (60, 60), "red").save(path)
    lacking = {"PYTHONIOENCODING": "latin-1"}
    shown = process("info", "--preprocess", path, env=lacking)
    assert shown.code == 0 and r"\u65e5.png" in shown.out
    shown = process("info", "--preprocess", path, "--json", env=lacking)
    assert json.loads(shown.out)["preprocess"]["image"] == str(path)
    hot = ("--temperature", 100, "--max-tokens", 200)
    lacking = {"PYTHONIOENCODING": "ascii"}
    answer = process("infer", "--engine", bundle, "--prompt", "Hi", *hot, env=lacking)
    assert answer.code == 0 and "\\u" in answer.out
    assert answer.err == "la-trt: the answer was cut off at 200 tokens (--max-tokens)\n"


def test_a_file_that_may_not_be_read(
    cli: RunCli, bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root everything may be read."""
    access, opened = os.access, Path.open

    def may(path: Any, mode: int, **more: Any) -> bool:
        return Path(path) != picture and access(path, mode, **more)

    def refuse(path: Path, *args: Any, **more: Any) -> Any:
        if path == picture:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **more)

    monkeypatch.setattr(os, "access", may)
    monkeypatch.setattr(Path, "open", refuse)
    outcome = cli("infer", "--engine", bundle, *ASK, "--image", picture)
    assert_refused(outcome, 3, "E_IMAGE_FILE", picture.name, "Permission denied")


def test_the_default_length_is_what_fits(cli: RunCli, short: Path, picture: Path) -> None:
    call = ("infer", "--engine", short, "--image", picture, "--prompt", "Hi")
    facts = json.loads(cli(*call, "--json").out)
    assert facts["finish_reason"] == "length"
    assert facts["usage"]["completion_tokens"] + facts["usage"]["prompt_tokens"] == 128
    outcome = cli(*call, "--max-tokens", 512)
    assert_refused(outcome, 3, "E_CONTEXT_LENGTH", "512", "lower --max-tokens")
    outcome = cli("infer", "--engine", short, "--prompt", "word " * 200)
    assert_refused(outcome, 3, "E_CONTEXT_LENGTH", "128")
    assert "--max-tokens" not in outcome.err
    flags = ("--image", picture, "--policy", "text", "--runs", 1, "--warmup", 0, "--json")
    measured = json.loads(cli("bench", "--engine", short, "--fixed-length", *flags).out)
    tokens = measured["policies"]["text"]["completion_tokens"]
    assert tokens + measured["prompt_tokens"] == 128


def test_an_evaluation_leaves_room_for_questions(
    cli: RunCli, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    build(tiny_checkpoint, tmp_path / "bundle", max_model_len=512)
    call = ("eval", "--engine", tmp_path / "bundle", "--suite", "lookworld", "--limit", 1)
    outcome = cli(*call, "--output", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    asked = json.loads((tmp_path / "run" / "run.json").read_text())["asked"]
    assert asked["max_tokens"] == 256
    outcome = cli(*call, "--output", tmp_path / "other", "--max-tokens", 512)
    assert_refused(outcome, 3, "E_CONTEXT_LENGTH", "--max-tokens 512", "512 tokens")


def full(*args: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_says_where_and_what_is_kept(
    cli: RunCli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    questions.write_text('{"prompt": "Hi"}\n')
    write, settings = os.write, iter([True])

    def fills(descriptor: int, data: bytes) -> int:
        return write(descriptor, data) if next(settings, False) else full()

    monkeypatch.setattr("la_trt.files.json_lines.os.write", fills)
    call = ("--input", questions, "--output", output, "--max-tokens", 2)
    outcome = cli("batch", "--engine", bundle, *call)
    kept = f"{output}.partial"
    assert_refused(outcome, 5, "E_WRITE", f"{kept}: cannot be written (No space left on device)")
    assert outcome.err.endswith(f"\nthe same command goes on from {kept}\n")


def test_a_full_disk_under_a_report(
    cli: RunCli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("la_trt.files.json_lines.os.write", full)
    call = ("--suite", "lookworld", "--limit", 1, "--output", tmp_path / "run", "--max-tokens", 2)
    outcome = cli("eval", "--engine", bundle, *call)
    monkeypatch.undo()
    assert_refused(outcome, 5, "E_WRITE", "answers.jsonl", "No space left on device")
    assert outcome.err.endswith(f"\nthe same command goes on from {tmp_path / 'run'}\n")


def test_a_full_disk_inside_a_block_names_the_file(tmp_path: Path) -> None:
    for block in (atomic.atomic_file, atomic.atomic_directory):
        with (
            pytest.raises(MachineError, match="output: cannot be written"),
            block(tmp_path / "output"),
        ):
            full()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), atomic.atomic_file(tmp_path / "map.png"):
        (tmp_path / "other").read_bytes()


def test_the_answer_is_the_same_each_time(cli: RunCli, reflecting: Path, picture: Path) -> None:
    call = ("infer", "--engine", reflecting, "--image", picture, *ASK)
    first = cli(*call).out
    assert "[looks again: 8 visual tokens (all, embed)]" in first and cli(*call).out == first


def test_a_narrow_terminal_gets_a_table_for_each_policy() -> None:
    metrics = {
        name: {"median": 1000.0, "p90": 2000.0, "p99": 3000.0, "n": 9} for name in bench_report.ROWS
    }
    policy = {"metrics": metrics, "completion_tokens": 5, "reinjections": 1}
    facts = {
        "engine": {"name": "native", "device": "cpu", "dtype": "float32"},
        "machine": {"processor": "a processor with a long name " * 4},
        "policies": {
            name: {**policy, "reinjected_tokens": 8} for name in ("copy", "text", "vision")
        },
        **{"prompt_tokens": 9, "visual_tokens": 8, "runs": 2, "warmup": 1},
    }
    wide, narrow = bench_report.table(facts), bench_report.table(facts, 80)
    assert max(map(len, wide.splitlines()[2:])) > 80 >= max(map(len, narrow.splitlines()))
    assert bench_report.table(facts, 200) == wide
    assert wide.count("median / p90 / p99") == 1 and narrow.count("median / p90 / p99") == 3
    assert all(", ms " in wide or "tokens" in wide for _ in bench_report.ROWS)
    assert narrow.split("\n\n")[2].splitlines()[0].split()[-1] == "text"


def test_block_size_without_codes(cli: RunCli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    call = ("build", "--ckpt", tiny_checkpoint, "--output", tmp_path / "x", "--block-size", "64")
    assert_refused(cli(*call), 2, "E_USAGE", "--block-size", "--quant int8 or int4")
    many = cli(*call, "--backend", "tensorrt", "--quant", "int8", "--sm", 89)
    assert_refused(many, 2, "E_USAGE", "--block-size", "add --quant int4")


def test_dtypes_of_other_engines(cli: RunCli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    call = ("build", "--ckpt", tiny_checkpoint, "--output", tmp_path / "x", "--dtype")
    assert_refused(cli(*call, "bf16"), 2, "E_USAGE", "--dtype", "add --backend tensorrt or native")
    native = cli(*call, "fp16", "--backend", "native")
    assert_refused(native, 2, "E_USAGE", "--dtype fp16", "give --dtype bf16")
    cache = cli(*call[:-1], "--kv-dtype", "int8")
    assert_refused(cache, 2, "E_USAGE", "--kv-dtype", "or give it to what runs the bundle")
    codes = cli(*call, "bf16", "--backend", "native", "--quant", "int8")
    assert_refused(codes, 2, "E_USAGE", "--dtype has no effect on --quant int8")
    with pytest.raises(UsageError, match="only the native engine"):
        build(tiny_checkpoint, tmp_path / "x", dtype="bfloat16")
    assert not (tmp_path / "x").exists()
    ask = ("infer", *ASK, "--kv-dtype", "bfloat16")
    for other in (("--ckpt", tiny_checkpoint), ("--backend", "onnx")):
        assert_refused(cli(*ask, *other), 2, "E_USAGE", "--kv-dtype is for the native engine")
    build(tiny_checkpoint, tmp_path / "onnx", quant="int8", block_size=16)
    outcome = cli(*ask, "--engine", tmp_path / "onnx")
    assert_refused(outcome, 2, "E_USAGE", "kv_dtype: the native engine", "ONNX Runtime")


def test_a_bundle_that_is_not_there_or_of_another_backend(
    cli: RunCli, tiny_checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    outcome = cli("infer", "--engine", tmp_path / "nope", *ASK)
    assert_refused(outcome, 4, "E_MISSING_FILE", "nope: no such directory", "la-trt build")
    build(tiny_checkpoint, tmp_path / "native", graphs=False)
    outcome = cli("infer", "--engine", tmp_path / "native", "--backend", "onnx", *ASK)
    assert_refused(outcome, 4, "E_MISSING_FILE", "built with --backend native")
    shutil.copytree(bundle, tmp_path / "broken")
    (tmp_path / "broken" / "extra.txt").write_text("x")
    outcome = cli("infer", "--engine", tmp_path / "broken", *ASK)
    assert_refused(outcome, 4, "E_UNLISTED_FILE", f"{tmp_path}/broken/extra.txt: not listed")


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (None, "--api-key-file KEYS: cannot be read (No such file or directory)"),
        (b"\xff\xfe\n", "--api-key-file KEYS: cannot be read (it is not UTF-8 text)"),
        (b"\n \n", "--api-key-file KEYS: holds no key"),
        (b"long enough\n\nsecret\n", "KEYS line 3: expected an API key of at least 8 ASCII"),
    ],
)
def test_bad_key_files(cli: RunCli, tmp_path: Path, lines: bytes | None, part: str) -> None:
    pytest.importorskip("fastapi")
    path = tmp_path / "keys"
    if lines is not None:
        path.write_bytes(lines)
    outcome = cli("serve", "--api-key-file", path)
    assert_refused(outcome, 2, "E_USAGE", part.replace("KEYS", str(path)))
    assert "secret" not in outcome.err


def test_a_short_key_of_the_environment(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setenv("LA_TRT_API_KEY", "secret")
    assert_refused(cli("serve"), 2, "E_USAGE", "LA_TRT_API_KEY: expected an API key of at least 8")
    assert "8 ASCII characters" in " ".join(cli("serve", "--help").out.split())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "call",
    [
        ("serve", "--api-key-file", "none", "--drain-seconds"),
        ("serve", "--api-key-file", "none", "--body-timeout"),
        ("serve", "--api-key-file", "none", "--header-timeout"),
        ("batch", "--worker-gpus"),
    ],
)
def test_numbers_are_finite(cli: RunCli, call: tuple[str, ...], value: str) -> None:
    assert_refused(cli(*call, value), 2, "E_USAGE", call[-1])


def test_images_that_are_no_files(cli: RunCli, bundle: Path) -> None:
    url = "http://example.com/a.png"
    for call in (("infer", "--engine", bundle, *ASK, "--image"), ("info", "--preprocess")):
        assert_refused(cli(*call, url), 3, "E_IMAGE_FILE", f"image {url}: URLs are not read")
        assert_refused(cli(*call, ""), 2, "E_USAGE", "empty")
    assert_refused(cli("infer", "--engine", "", *ASK), 2, "E_USAGE", "--engine", "empty")


@pytest.mark.parametrize("place", ["file/map.png", "/proc/none/map.png"])
def test_pictures_are_refused_before_the_run(
    cli: RunCli, bundle: Path, picture: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("x")
    path = tmp_path / place
    drawn = cli("infer", "--engine", bundle, *ASK, "--image", picture, "--heatmap", path)
    assert_refused(drawn, 5, "E_WRITE", f"--heatmap {path}: cannot be written")
    drawn = cli("bench", "--engine", bundle, "--runs", 1, "--plot", path)
    assert_refused(drawn, 5, "E_WRITE", f"--plot {path}: cannot be written")
    before = picture.read_bytes()
    drawn = cli("infer", "--engine", bundle, *ASK, "--image", picture, "--heatmap", picture)
    assert_refused(drawn, 2, "E_USAGE", f"--heatmap {picture}: is an image that is asked about")
    drawn = cli("bench", "--engine", bundle, "--image", picture, "--plot", picture)
    assert_refused(drawn, 2, "E_USAGE", f"--plot {picture}: is an image that is asked about")
    assert picture.read_bytes() == before
    terminal.check_picture(tmp_path / "new" / "map.png", "--plot")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_ends_the_line_of_an_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def events() -> Any:
        yield TokenEvent(sequence=0, step=0, token_id=0, text="3,4", logprob=0.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(app_module, "_invoke", lambda *args: infer._answer(events(), as_json=False))
    assert run([]) == 130
    assert capsys.readouterr() == ("3,4\n", "la-trt: interrupted\n")


def test_info_says_what_was_asked_for_in_words(
    cli: RunCli, bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def asked(path: Path) -> str:
        lines = cli("info", path).out.splitlines()
        return next(line for line in lines if line.startswith("asked for")).split(maxsplit=2)[2]

    assert asked(bundle) == "quant none"
    build(tiny_checkpoint, tmp_path / "x", quant="int8", block_size=16, max_model_len=512)
    assert asked(tmp_path / "x") == "block size 16, max model len 512, quant int8"


def test_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "num_threads", lambda: 1)
    assert ", 1 thread, " in checks.processor()
    monkeypatch.setattr(checks, "num_threads", lambda: 2)
    assert ", 2 threads, " in checks.processor()


@pytest.mark.parametrize("command", ["infer", "batch", "eval"])
def test_help_says_the_ranges(cli: RunCli, command: str) -> None:
    text = " ".join(cli(command, "--help").out.split())
    assert "0 to 100;" in text and "0 to 2^63 - 1" in text


def test_a_cache_that_cannot_be_written_names_the_variable(
    cli: RunCli, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert_refused(cli("infer", *ASK), 5, "E_WRITE", "/proc/none/la-trt", "XDG_CACHE_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert_refused(cli("infer", *ASK), 5, "E_ENVIRONMENT", "home directory", "XDG_CACHE_HOME")


def homeless(path: Path) -> NoReturn:
    raise RuntimeError("Could not determine home directory.")


def test_paths_leave_reading_to_who_reads() -> None:
    assert not options.PATH.readable and not options.IMAGE.readable


def test_a_real_process_without_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "la_trt.cli"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Usage: la-trt ") and "\nCommands:\n" in done.stderr
