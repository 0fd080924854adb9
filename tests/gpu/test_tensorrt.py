"""What only a GPU can show: built engines give the reference's numbers. Has not run yet.

`make test-gpu` compiles the plugins first. Skipped, with the reason, where something is missing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_engines.tensorrt.bundle import TensorRTOptions, build_tensorrt
from la_trt.api import LookAgain, make_options
from la_trt.assets import SAMPLE_IMAGES, TINY_CHECKPOINT
from la_trt.engines.cuda import open_device
from la_trt.engines.tensorrt import TensorRTEngine
from la_trt.engines.tensorrt_library import load_tensorrt, plugin_library
from la_trt.engines.torch import TorchEngine
from la_trt.errors import MachineError
from la_trt.files.bundle import open_bundle
from tests.engines.script import play, random_script


def why_not() -> str:
    """What is missing, or ''."""
    try:
        load_tensorrt()
        plugin_library()
        with open_device():
            return ""
    except MachineError as error:
        return str(error).splitlines()[0]


REASON = why_not()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]
QUESTION = "What number is written on the large purple star?"


@pytest.fixture(scope="module", params=["fp16", "bf16", "fp16 int8", "fp16 fp8"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of a type of activations, the KV cache in it or in codes."""
    dtype, _, kv_dtype = request.param.partition(" ")
    with open_device() as device:
        if dtype == "bf16" and device.sm < 80:
            pytest.skip("bf16 needs SM 80")
        options = TensorRTOptions(
            sms=(device.sm,), dtype=dtype, kv_dtype=kv_dtype or None, max_batch=4
        )
    path = tmp_path_factory.mktemp("gpu") / request.param.replace(" ", "-")
    build_tensorrt(TINY_CHECKPOINT, path, options, max_model_len=2048)
    return path


@pytest.mark.parametrize("graphs", [False, True])
def test_logits_and_mass_are_those_of_the_reference(bundle: Path, graphs: bool) -> None:
    """Twice the error of PyTorch at the same precision, at most; caches of codes have their own
    test.
    """
    engine = TensorRTEngine(open_bundle(bundle), graphs=graphs)
    if engine.limits.details["kv_dtype"] not in ("float16", "bfloat16"):
        engine.close()
        pytest.skip("a cache of codes")
    exact = TorchEngine.from_pretrained(TINY_CHECKPOINT, max_batch=4)
    rough = TorchEngine.from_pretrained(
        TINY_CHECKPOINT, max_batch=4, dtype=engine.limits.details["kv_dtype"]
    )
    scripts = [random_script(exact.config, seed) for seed in range(3)]
    traces: list[Any] = [play(e, scripts) for e in (exact, rough, engine)]
    for expected, same_precision, got in zip(*traces, strict=True):
        for i in range(len(expected.logits)):
            for name in ("logits", "mass"):
                values = [getattr(t, name)[i] for t in (expected, same_precision, got)]
                allowed = 2 * np.abs(values[1] - values[0]).max() + 1e-4
                assert np.abs(values[2] - values[0]).max() <= allowed, (name, i)
    engine.close()


@pytest.mark.parametrize("policy", ["never", "copy", "route"])
@pytest.mark.parametrize("inject", ["embed", "kv"])
def test_graphs_and_plain_passes_give_the_same_tokens(
    bundle: Path, policy: str, inject: Any
) -> None:
    if policy == "never" and inject == "kv":
        pytest.skip("never injects nothing")
    answers = []
    for graphs in (True, False):
        model = LookAgain.from_bundle(bundle, backend="tensorrt", graphs=graphs)
        given = {} if policy == "never" else {"inject": inject}
        result = model.generate(
            [SAMPLE_IMAGES / "purple.png"], QUESTION, policy=policy, max_tokens=100, **given
        )
        answers.append(result.tokens)
    assert answers[0] == answers[1]


def test_tokens_are_drawn_as_the_host_draws_them(bundle: Path) -> None:
    """`top_logprobs` makes the host draw from the same logits: the same seed, the same tokens."""
    model = LookAgain.from_bundle(bundle, backend="tensorrt")
    image = [SAMPLE_IMAGES / "purple.png"]
    made = make_options(max_tokens=60, temperature=0.8, top_p=0.95, seed=3)
    prompt = model.prompt(image, QUESTION, max_tokens=60)
    answers = [
        model.session.generate(prompt, replace(made, top_logprobs=top)).tokens for top in (0, 1)
    ]
    assert answers[0] == answers[1]


def test_stages_are_timed(bundle: Path) -> None:
    """The GPU's own times, printed: a decoding pass, a chunk, the vision tower, an injection."""
    model = LookAgain.from_bundle(bundle, backend="tensorrt")
    image = [SAMPLE_IMAGES / "purple.png"]
    model.generate(image, QUESTION, policy="copy", inject="kv", max_tokens=100)
    stages = model.engine.stage_times()
    for name, stage in stages.items():
        mean_us = stage.total_ms * 1e3 / stage.num_runs
        print(f"{name}: {stage.num_runs} runs, {mean_us:.1f} µs each")
        assert stage.total_ms > 0
    assert {"vision", "chunk", "token"} <= set(stages)
