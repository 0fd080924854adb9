"""Execution providers: exactly those asked for, with their options, never the CPU in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from la_trt.engines import onnx_session
from la_trt.engines.onnx import OnnxEngine
from la_trt.engines.onnx_session import CPU, CUDA
from la_trt.errors import MachineError, UsageError
from la_trt.files.bundle import Bundle
from tests.engines.script import text_step
from tests.model.configs import random_model
from tests.onnx.helpers import graph_bundle

AZURE = "AzureExecutionProvider"  # in every onnxruntime, and with a kernel for nothing of ours


class FakeSession:
    """An `InferenceSession` with the CUDA provider: says what was asked, and the CPU computes."""

    def __init__(self, machine: Any, path: Path, options: Any, providers: list[Any]) -> None:
        if machine.error:
            raise RuntimeError(machine.error)
        self._machine, self._asked = machine, dict(providers)
        try:
            no_fallback = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        except RuntimeError:  # it was not set
            no_fallback = ""
        machine.opened.append((path.name, self._asked, no_fallback))
        plain = ort.SessionOptions()
        plain.log_severity_level = 3
        self._session = ort.InferenceSession(path, plain, providers=[CPU])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [*self._machine.started, CPU]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {n: o | self._machine.changed for n, o in self._asked.items()} | {CPU: {}}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """onnxruntime where there is a GPU. `started`: the providers that start; `changed`: options
    that they set otherwise; `error`: what opening a session ends with.
    """
    found = SimpleNamespace(opened=[], started=(CUDA,), changed={}, error="")
    fake = SimpleNamespace(
        SessionOptions=ort.SessionOptions,
        ExecutionOrder=ort.ExecutionOrder,
        InferenceSession=lambda *args, **given: FakeSession(found, *args, **given),
        get_available_providers=lambda: [CUDA, CPU],
        __version__=ort.__version__,
    )
    monkeypatch.setattr(onnx_session, "ort", fake)
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return graph_bundle(random_model(2), tmp_path / "b")


def test_nothing_is_written_for_telemetry(bundle: Bundle, tmp_path: Path) -> None:
    code = "from la_trt.engines.ort import ort; ort.InferenceSession(__import__('sys').argv[1])"
    home, hidden = tmp_path / "home", ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"HOME": str(home)}
    command = [sys.executable, "-c", code, str(bundle.file("vision.onnx"))]
    subprocess.run(command, env=environment, check=True)
    assert not list(home.iterdir())


def test_cuda_gets_its_options_and_the_cpu_no_node(machine: Any, bundle: Bundle) -> None:
    """The same graphs as on the CPU, both on the GPU that was named, in true float32."""
    given = {CUDA: {"device_id": "1", "gpu_mem_limit": "1073741824"}}
    engine = OnnxEngine(bundle, max_len=64, providers=(CUDA,), provider_options=given)
    options = {"device_id": "1", "use_tf32": "0", "gpu_mem_limit": "1073741824"}
    assert machine.opened == [(f"{g}.onnx", {CUDA: options}, "1") for g in ("decoder", "vision")]
    assert engine.limits.device == CUDA and CUDA in engine.limits.details["providers"]
    plain = OnnxEngine(bundle, max_len=64)
    logits = []
    for each in (engine, plain):
        slot = each.alloc(10)
        logits.append(each.forward(text_step(slot, [1, 2, 3], 0)).logits)
    np.testing.assert_array_equal(*logits)


def test_the_cpu_may_help_only_where_it_is_named(machine: Any, bundle: Bundle) -> None:
    OnnxEngine(bundle, max_len=64, providers=(CUDA, CPU))
    for _, asked, no_fallback in machine.opened:
        assert list(asked) == [CUDA, CPU]
        assert no_fallback == ""


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"started": ()}, "did not start"),
        ({"error": "libcublas.so.12: cannot open"}, "cannot run it: libcublas.so.12"),
        ({"changed": {"use_tf32": "1"}}, "use_tf32 is '1', not '0'"),
    ],
)
def test_a_provider_that_fails_is_an_error(
    change: dict[str, Any], what: str, machine: Any, bundle: Bundle
) -> None:
    vars(machine).update(change)
    with pytest.raises(MachineError, match=what) as refused:
        OnnxEngine(bundle, max_len=64, providers=(CUDA,))
    assert refused.value.name == "E_PROVIDER"


def test_options_of_a_provider_that_is_not_asked_for_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="not among the providers"):
        OnnxEngine(bundle, max_len=64, provider_options={CUDA: {"device_id": "1"}})


@pytest.mark.skipif(
    AZURE not in ort.get_available_providers(), reason=f"{AZURE} is not in this onnxruntime"
)
def test_the_real_onnxruntime_does_not_fall_back(bundle: Bundle) -> None:
    """A provider that has a kernel for no node: alone it is refused, where onnxruntime by itself
    would run everything on the CPU; with the CPU named it runs.
    """
    with pytest.raises(MachineError, match=f"{AZURE} cannot run it") as refused:
        OnnxEngine(bundle, max_len=64, providers=(AZURE,))
    assert refused.value.name == "E_PROVIDER"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    assert ort.InferenceSession(bundle.file("vision.onnx"), options, providers=[AZURE])
    OnnxEngine(bundle, max_len=64, providers=(AZURE, CPU))
