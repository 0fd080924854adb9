"""What `infer` prints: the answer with its marks, or one JSON object, and nothing else."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from la_trt.cli.terminal import AnswerPrinter
from la_trt.events import ReflectionEvent, ReinjectEvent, TokenEvent
from tests.cli.conftest import RunCli
from tests.native.helpers import needs_native

DEFAULT = "native" if find_spec("la_trt._native") else "onnx"
MARK = re.compile(r"\[looks again: (\d+) visual tokens \((\w+), (\w+)\)\]")


def test_text_alone_on_stdout(process: RunCli, bundle: Path, picture: Path) -> None:
    outcome = process(
        "infer", "--engine", bundle, "--image", picture, "--prompt", "Hi", "--max-tokens", 5
    )
    cut_off = "la-trt: the answer was cut off at 5 tokens (--max-tokens)\n"
    assert outcome.code == 0 and outcome.err == cut_off
    assert outcome.out.endswith("\n") and outcome.out.strip()


@pytest.mark.parametrize(
    ("flags", "num_tokens", "select", "kind"),
    [
        (["--policy", "copy"], 8, "all", "embed"),
        (["--policy", "copy", "--inject", "kv"], 8, "all", "kv"),
        (["--policy", "route"], 4, "route", "embed"),
        (["--policy", "route", "--route-percent", "26"], 3, "route", "embed"),
        (["--policy", "random", "--route-percent", "100"], 8, "random", "embed"),
    ],
)
def test_second_looks_are_marked(
    cli: RunCli,
    reflecting: Path,
    picture: Path,
    flags: list[str],
    num_tokens: int,
    select: str,
    kind: str,
) -> None:
    ask = ("infer", "--engine", reflecting, "--image", picture, "--prompt", "Hi", *flags)
    plain = cli(*ask, "--max-tokens", 4)
    assert plain.code == 0
    assert plain.out.count("<REFLECTION>") == 4
    assert MARK.findall(plain.out) == [(str(num_tokens), select, kind)] * 3
    facts = json.loads(cli(*ask, "--max-tokens", 4, "--json").out)
    looks = [(r["num_tokens"], r["select"], r["kind"]) for r in facts["reinjections"]]
    assert looks == [(num_tokens, select, kind)] * 3
    assert facts["usage"]["reinjected_tokens"] == 3 * num_tokens


def test_limit_of_reflections(cli: RunCli, reflecting: Path, picture: Path) -> None:
    ask = ("infer", "--engine", reflecting, "--image", picture, "--prompt", "Hi")
    outcome = cli(*ask, "--max-tokens", 4, "--max-reflections", 1)
    assert len(MARK.findall(outcome.out)) == 1
    assert outcome.out.count("[no second look: max reflections]") == 2
    default = cli(*ask, "--max-tokens", 12)
    assert len(MARK.findall(default.out)) == 8


def test_json_is_one_object_of_the_published_shape(
    cli: RunCli, reflecting: Path, picture: Path
) -> None:
    outcome = cli(
        *("infer", "--engine", reflecting, "--image", picture, "--image", picture),
        *("--prompt", "Hi", "--policy", "route", "--max-tokens", 3, "--json", "--stats"),
    )
    assert outcome.code == 0
    facts = json.loads(outcome.out)
    assert outcome.out.count("\n") == 1
    assert list(facts) == [
        "text",
        "conclusion",
        "finish_reason",
        "tokens",
        "engine",
        "policy",
        "reinjections",
        "usage",
        "timing",
    ]
    assert facts["text"] == "<REFLECTION>" * 3 and facts["conclusion"] == ""
    assert (facts["finish_reason"], facts["engine"], facts["policy"]) == (
        "length",
        DEFAULT,
        "route",
    )
    assert len(facts["tokens"]) == 3 and len(set(facts["tokens"])) == 1
    keys = ["step", "kind", "select", "num_tokens", "ms", "skipped", "selected"]
    assert [list(r) for r in facts["reinjections"]] == [keys, keys]
    for looked in facts["reinjections"]:
        chosen = looked["selected"]
        assert len(chosen) == 8 and chosen == sorted(set(chosen)) and chosen[0] >= 0
        assert chosen[-1] < 16
    usage = facts["usage"]
    assert usage["visual_tokens"] == 16 and usage["reinjected_tokens"] == 16
    assert usage["completion_tokens"] == 3 and usage["prompt_tokens"] > 16
    assert list(facts["timing"]) == [
        *("vision_ms", "prefill_ms", "ttft_ms", "decode_ms", "tpot_ms", "reinject_ms"),
        "total_ms",
    ]
    assert all(value >= 0 for value in facts["timing"].values())
    assert "first token" in outcome.err and f"{DEFAULT}, route" in outcome.err


@needs_native
def test_guesses_change_no_answer(cli: RunCli, reflecting: Path, picture: Path) -> None:
    ask = ("infer", "--engine", reflecting, "--image", picture, "--prompt", "Hi", "--stats")
    plain = cli(*ask, "--max-tokens", 12, "--policy", "text")
    guessed = cli(*ask, "--max-tokens", 12, "--policy", "text", "--speculate", 2)
    assert plain.code == guessed.code == 0 and plain.out == guessed.out
    assert "guesses" not in plain.err
    # Two tokens, a third that follows them, then one and one guessed at each step; the last has
    # nothing behind it.
    assert re.search(r"guesses +4 tokens, 4 came true", guessed.err), guessed.err


@needs_native
def test_bf16_weights_and_cache(cli: RunCli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    call = ("build", "--ckpt", tiny_checkpoint, "--output", output, "--backend", "native")
    assert cli(*call, "--dtype", "bf16").code == 0
    assert "dtype bfloat16" in cli("info", output).out
    run = ("bench", "--engine", output, "--runs", 1, "--warmup", 0, "--max-tokens", 2, "--json")
    engines = [
        json.loads(cli(*run, *flags).out)["engine"] for flags in ((), ("--kv-dtype", "int8"))
    ]
    assert [engine["dtype"] for engine in engines] == ["bfloat16"] * 2
    assert [engine["kv_dtype"] for engine in engines] == ["bfloat16", "int8"]


def test_guesses_without_effect_are_told_of(
    cli: RunCli, reflecting: Path, tiny_checkpoint: Path, picture: Path
) -> None:
    ask = ("infer", "--image", picture, "--prompt", "Hi", "--max-tokens", 2, "--speculate", 2)
    outcome = cli(*ask, "--engine", reflecting, "--backend", "onnx")
    assert outcome.code == 0
    assert "speculate has no effect: engine 'onnx' takes no guesses" in outcome.err
    outcome = cli(*ask, "--ckpt", tiny_checkpoint)
    assert outcome.code == 2
    assert "--speculate: the torch engine takes no guesses" in outcome.err


def test_baselines_put_nothing_in(cli: RunCli, reflecting: Path, picture: Path) -> None:
    ask = ("infer", "--engine", reflecting, "--image", picture, "--prompt", "Hi", "--json")
    text = json.loads(cli(*ask, "--max-tokens", 4, "--policy", "text").out)
    assert text["reinjections"] == [] and text["text"] == "<REFLECTION>" * 4
    never = json.loads(cli(*ask, "--max-tokens", 4, "--policy", "never").out)
    assert "<REFLECTION>" not in never["text"]
    vision = json.loads(cli(*ask, "--max-tokens", 4, "--policy", "vision").out)
    assert vision["text"] == "<REFLECTION></REFLECTION>" * 2


def test_policy_file(cli: RunCli, bundle: Path, picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trigger: {kind: every, every_tokens: 2}\nselect: {kind: all}\ninject: kv\n")
    ask = ("infer", "--engine", bundle, "--image", picture, "--prompt", "Hi", "--max-tokens", 7)
    facts = json.loads(cli(*ask, "--policy", path, "--json").out)
    assert facts["policy"] == "mine"
    assert [r["step"] for r in facts["reinjections"]] == [2, 4]  # the last token has no pass


def test_settings_reach_the_model(cli: RunCli, bundle: Path, picture: Path) -> None:
    ask = ("infer", "--engine", bundle, "--image", picture, "--prompt", "Hi", "--json")
    hot = ("--temperature", 1, "--max-tokens", 12)

    def tokens(*flags: object) -> list[int]:
        found = json.loads(cli(*ask, *flags).out)["tokens"]
        assert isinstance(found, list)
        return found

    greedy = tokens("--max-tokens", 12)
    assert tokens(*hot, "--seed", 1) == tokens(*hot, "--seed", 1) != tokens(*hot, "--seed", 2)
    assert tokens(*hot, "--top-k", 1, "--seed", 5) == greedy
    assert tokens(*hot, "--top-p", 1e-9, "--seed", 5) == greedy
    assert len(set(tokens("--max-tokens", 12, "--repetition-penalty", 100))) == 12


def test_stop_string(cli: RunCli, reflecting: Path) -> None:
    outcome = cli("infer", "--engine", reflecting, "--prompt", "Hi", "--stop", "N><", "--json")
    facts = json.loads(outcome.out)
    assert facts["finish_reason"] == "stop" and facts["text"] == "<REFLECTIO"


def test_a_flag_without_effect_warns(cli: RunCli, bundle: Path) -> None:
    ask = ("infer", "--engine", bundle, "--prompt", "Hi", "--max-tokens", 2)
    outcome = cli(*ask, "--policy", "copy", "--route-percent", 20)
    assert outcome.code == 0
    warning = "la-trt: warning: route percent has no effect on policy 'copy'\n"
    assert outcome.err.startswith(warning)


def test_heat_map(cli: RunCli, reflecting: Path, picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    ask = ("infer", "--engine", reflecting, "--image", picture, "--prompt", "Hi")
    outcome = cli(*ask, "--max-tokens", 3, "--policy", "route", "--heatmap", path)
    assert outcome.code == 0 and list(tmp_path.iterdir()) == [path]
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_a_checkpoint_as_it_is(
    cli: RunCli, reflecting: Path, reflecting_checkpoint: Path, picture: Path
) -> None:
    pytest.importorskip("torch")
    ask = ("--image", picture, "--prompt", "Hi", "--max-tokens", 3, "--json")
    torch = json.loads(cli("infer", "--ckpt", reflecting_checkpoint, *ask).out)
    assert torch["engine"] == "torch"
    for backend in ("onnx", "auto"):
        outcome = cli("infer", "--engine", reflecting, "--backend", backend, *ask)
        built = json.loads(outcome.out)
        assert built["engine"] == (DEFAULT if backend == "auto" else backend)
        assert torch["tokens"] == built["tokens"] and torch["usage"] == built["usage"]


def test_without_the_kernels_onnx_runtime_answers(
    cli: RunCli, reflecting: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("la_trt.engines.native.find_spec", lambda name: None)
    ask = ("--image", picture, "--prompt", "Hi", "--max-tokens", 2, "--json")
    assert json.loads(cli("infer", "--engine", reflecting, *ask).out)["engine"] == "onnx"


def test_the_shipped_model_is_built_once(cli: RunCli, shipped: Path, picture: Path) -> None:
    ask = ("infer", "--image", picture, "--prompt", "Hi", "--max-tokens", 2)
    assert cli(*ask).code == 0
    (built,) = shipped.iterdir()
    before = (built / "bundle.json").stat()
    assert cli(*ask).code == 0
    after = (built / "bundle.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    (built / "vision.onnx").write_bytes(b"damaged")
    assert cli(*ask).code == 0
    assert [p.name for p in shipped.iterdir()] == [built.name]
    assert (built / "bundle.json").stat().st_ino != before.st_ino


def test_the_cache_cannot_be_written(
    cli: RunCli, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    outcome = cli("infer", "--prompt", "Hi")
    assert outcome.code == 5 and outcome.err.startswith("la-trt: error[E_WRITE]")


def token(text: str) -> TokenEvent:
    return TokenEvent(sequence=0, step=0, token_id=0, text=text, logprob=0.0)


def test_escape_sequences_never_reach_the_terminal() -> None:
    stream = io.StringIO()
    printer = AnswerPrinter(stream)
    for text in ("a\x1b[2J", "\x9b31m", "\r\x07\x00", "tab\tline\n"):
        printer.show(token(text))
    printer.finish()
    assert stream.getvalue() == "a\ufffd[2J\ufffd31m\ufffd\ufffd\ufffdtab\tline\n"


def test_marks_stand_on_lines_of_their_own() -> None:
    stream = io.StringIO()
    printer = AnswerPrinter(stream)
    none = np.zeros(0, np.int64)
    looks = {"sequence": 0, "step": 1, "kind": "embed", "select": "all", "selected": none}
    printer.show(token("one <REFLECTION>"))
    printer.show(ReflectionEvent(sequence=0, step=0, index=0, opened=True))
    printer.show(ReinjectEvent(**looks, num_tokens=64, ms=1.26))  # type: ignore[arg-type]
    printer.show(token("two"))
    printer.show(ReinjectEvent(**looks, num_tokens=0, ms=0.0, skipped="no_room"))  # type: ignore[arg-type]
    printer.finish()
    assert stream.getvalue() == (
        "one <REFLECTION>\n[looks again: 64 visual tokens (all, embed)]\n"
        "two\n[no second look: no room]\n"
    )


def test_a_terminal_gets_colours(reflecting: Path, picture: Path) -> None:
    leader, follower = pty.openpty()
    call = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "la_trt.cli",
            "infer",
            "--engine",
            str(reflecting),
            "--image",
            str(picture),
            "--prompt",
            "Hi",
            "--max-tokens",
            "2",
        ],
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color"} | {"NO_COLOR": ""},
    )
    os.close(follower)
    data = b""
    try:
        while piece := os.read(leader, 4096):
            data += piece
    except OSError:
        pass  # Linux reports the end of a terminal so
    os.close(leader)
    assert call.stderr is not None
    err = call.stderr.read()
    call.stderr.close()
    assert call.wait(60) == 0, err
    text = data.decode()
    assert "\x1b[" in text
    assert "looks again: 8 visual tokens" in re.sub(r"\x1b\[[\d;]*m", "", text)
