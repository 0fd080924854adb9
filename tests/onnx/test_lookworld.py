"""The shipped checkpoint: float32 bundle against torch on a few LookWorld questions.

All policies on 100 questions, and the scores of int8 and int4: `python -m benchmarks.onnx_parity`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.onnx_parity import CHECKPOINT, answer_all, compare, policies
from build_engines import build
from la_trt.api import LookAgain
from la_trt.eval.lookworld import EvalConfig, questions

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT / "config.json").exists(), reason="no shipped checkpoint in this tree"
)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[LookAgain, LookAgain]:
    path: Path = tmp_path_factory.mktemp("bundle") / "b"
    build(CHECKPOINT, path)
    exact = LookAgain.from_bundle(path, backend="onnx", threads=1, max_batch=4)
    return LookAgain.from_checkpoint(CHECKPOINT, max_batch=4, threads=1), exact


@pytest.mark.parametrize("name", ["never", "copy", "route", "route (kv)"])
def test_same_tokens_and_masses(name: str, engines: tuple[LookAgain, LookAgain]) -> None:
    samples = questions(EvalConfig(num_per_family=1, families=("count", "exist", "sum")))
    expected, got = (answer_all(e, samples, policies()[name], 320) for e in engines)
    parity = compare(name, expected, got)
    assert parity.num_same == parity.num_questions == 3
    assert parity.max_mass_difference < 1e-5
    assert parity.num_tokens > 30
    if name != "never":
        assert parity.num_reinjections > 0
