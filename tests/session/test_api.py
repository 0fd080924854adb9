"""The Python entry on a whole model directory, and what `import la_trt` costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import la_trt
from la_trt.api import LookAgain, end_tokens, make_options
from la_trt.engines.base import Step, StepOutput
from la_trt.engines.slots import SlotTable
from la_trt.errors import CheckpointError, InputError, UsageError
from la_trt.events import DoneEvent, TokenEvent
from la_trt.processor.prompt import Processor
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LookAgain:
    pytest.importorskip("torch")
    return LookAgain.from_checkpoint(tiny_checkpoint, max_batch=2, max_len=600)


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, la_trt; print('torch' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_the_session_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import la_trt.report.heatmap\n"
        "from la_trt import LookAgain, make_options\n"
        "try: LookAgain.from_checkpoint('.')\n"
        "except Exception as e: print(e.name, e.exit_code)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["E_NO_TORCH", "5"]


def test_every_exported_name_is_there() -> None:
    for name in la_trt.__all__:
        assert getattr(la_trt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = la_trt.nothing


def test_a_question_is_answered_and_streamed_alike(model: LookAgain, picture: Path) -> None:
    result = model.generate([picture], "What is this?", max_tokens=12, masses=True)
    events = list(model.stream([picture], "What is this?", max_tokens=12, masses=True))
    assert isinstance(events[-1], DoneEvent)
    assert events[-1].result.tokens == result.tokens
    assert "".join(e.text for e in events if isinstance(e, TokenEvent)) == result.text
    prompt = model.prompt([picture], "What is this?")
    assert result.usage.prompt_tokens == len(prompt.input_ids)
    assert result.usage.visual_tokens == prompt.num_visual > 0
    assert result.step_masses.shape[1] == prompt.num_visual
    json.dumps(result.to_json(), allow_nan=False)


def test_threads_take_turns(
    model: LookAgain, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, inside = model.engine.forward, threading.Lock()

    def alone(step: Step) -> StepOutput:
        assert inside.acquire(blocking=False), "two threads in the engine at once"
        try:
            time.sleep(0.001)
            return forward(step)
        finally:
            inside.release()

    monkeypatch.setattr(model.engine, "forward", alone)
    questions = ["What is this?", "How many?"]
    want = [model.generate([picture], q, max_tokens=12).tokens for q in questions]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(model.generate, [picture], q, max_tokens=12) for q in questions]
        assert [one.result().tokens for one in asked] == want
    streams = [model.stream([picture], q, max_tokens=12) for q in questions]
    next(streams[0])
    assert [e.result.tokens for e in streams[1] if isinstance(e, DoneEvent)] == want[1:]
    streams[0].close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{"max_len": 10.5}, {"max_len": "9"}, {"max_batch": True}])
def test_sizes_are_integers(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))}: expected an integer"):
        SlotTable.of_bundle(100, **{"max_batch": 1, "max_len": None} | options)


def test_forced_reflections_look_again(model: LookAgain, picture: Path) -> None:
    tag = model.session.tags.reflection_open
    assert tag is not None
    for inject in ("embed", "kv"):
        options = {"policy": "route", "inject": inject, "route_percent": 25, "forced": [5, tag]}
        result = model.generate([picture], "Look", max_tokens=4, **options)
        (event,) = result.reinjections
        assert (event.kind, event.select, event.step, event.skipped) == (inject, "route", 1, "")
        assert event.num_tokens == -(-result.usage.visual_tokens // 4)
        assert "<REFLECTION>" in result.text


def test_too_long_a_question_is_refused_before_any_pixel(model: LookAgain, picture: Path) -> None:
    with pytest.raises(InputError) as caught:
        model.generate([picture], "word " * 400, max_tokens=300)
    assert caught.value.name == "E_CONTEXT_LENGTH"
    with pytest.raises(InputError, match="at most 8"):
        model.generate([picture] * 9, "Look")


def test_options_by_flat_name() -> None:
    options = make_options(policy="route", inject="kv", route_percent=10, stop="END", seed=4)
    assert (options.policy.select.percent, options.policy.inject) == (10, "kv")
    assert (options.stop, options.sampling.seed) == (("END",), 4)
    with pytest.raises(UsageError):
        make_options(max_tokens=0)
    with pytest.raises(TypeError):
        make_options(temprature=1)


@pytest.mark.parametrize("name", ["stop", "stop_token_ids", "forced"])
@pytest.mark.parametrize("value", [3, None, 1.5])
def test_a_lone_value_where_several_belong_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name}: expected a sequence of") as refused:
        make_options(**{name: value})
    assert refused.value.name == "E_OPTION"


def test_end_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    root = write_tiny_checkpoint(tmp_path / "ckpt")
    processor = Processor.from_pretrained(root)
    config = la_trt.api.ModelConfig.from_file(root / "config.json")
    turn_end = processor.vocabulary.controls["<|im_end|>"]
    path = root / "generation_config.json"
    for value, expected in [
        (7, {7, turn_end}),
        ([7, 8], {7, 8, turn_end}),
        (None, {*config.eos_token_ids, turn_end}),
        ([], {*config.eos_token_ids, turn_end}),
    ]:
        path.write_text(json.dumps({"eos_token_id": value}))
        assert end_tokens(config, processor, root) == expected
    path.unlink()
    assert end_tokens(config, processor, root) == {*config.eos_token_ids, turn_end}
    (tmp_path / "elsewhere.json").write_text('{"eos_token_id": 7}')
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match="leads out of the directory"):
        end_tokens(config, processor, root)
    path.unlink()
    for bad in ('{"eos_token_id": "7"}', '{"eos_token_id": [-1]}', '{"eos_token_id": true}', "{"):
        path.write_text(bad)
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            end_tokens(config, processor, root)


def test_files_of_different_checkpoints_are_refused(
    model: LookAgain, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    root = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, root)
    (root / "config.json").unlink()
    path = root / "preprocessor_config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "merge_size": 1}))
    with pytest.raises(CheckpointError, match="different checkpoints"):
        LookAgain(model.engine, Processor.from_pretrained(root))
