"""Bundles that the native engine opens, and those that it cannot."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from PIL import Image, ImageDraw

from build_engines.build import build
from la_trt.api import LookAgain
from la_trt.assets import TINY_CHECKPOINT
from la_trt.engines.native import WEIGHTS, NativeEngine
from la_trt.errors import BundleError, CheckpointError, MachineError, UsageError
from la_trt.files.bundle import open_bundle
from tests.files.samples import make_config
from tests.native.helpers import needs_native
from tests.tiny import write_tiny_checkpoint


@needs_native
@pytest.mark.parametrize("policy", ["copy", "route"])
def test_the_shipped_model_answers_as_on_onnxruntime(policy: str, tmp_path: Path) -> None:
    """The same greedy tokens and the same selection, through a forced reflection."""
    build(TINY_CHECKPOINT, tmp_path / "b")
    image = Image.new("RGB", (112, 112), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 70, 70), fill="red")
    results = []
    for backend in ("onnx", "native"):
        model = LookAgain.from_bundle(tmp_path / "b", backend=backend, threads=1, max_batch=1)
        assert model.engine.limits.name == backend
        tag = model.session.tags.reflection_open
        assert tag is not None
        result = model.generate(
            [image],
            "How many red circles are there?",
            policy=policy,
            forced=(tag,),
            max_tokens=24,
            ignore_eos=True,
        )
        assert [r.skipped for r in result.reinjections][:1] == [""]
        results.append(result)
    assert results[0].tokens == results[1].tokens
    selected = [r.reinjections[0].selected.tolist() for r in results]
    assert selected[0] == selected[1]


def test_native_weights_alone(tmp_path: Path) -> None:
    """The same file as in a whole bundle, without graphs; other engines say what is missing."""
    ckpt = write_tiny_checkpoint(tmp_path / "ckpt")
    stages = []
    build(ckpt, tmp_path / "whole", quant="int8")
    build(
        ckpt, tmp_path / "b", quant="int8", graphs=False, progress=lambda *args: stages.append(args)
    )
    bundle, whole = open_bundle(tmp_path / "b"), open_bundle(tmp_path / "whole")
    names = [{entry.path for entry in b.manifest.files} for b in (whole, bundle)]
    graphs = ("decoder.onnx", "decoder.onnx.data", "decoder_plain.onnx")
    assert names[0] - names[1] == {*graphs, "vision.onnx", "vision.onnx.data"}
    assert names[1] < names[0]
    assert bundle.file(WEIGHTS).read_bytes() == whole.file(WEIGHTS).read_bytes()
    assert ("native weights", 1, 1) in stages
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        LookAgain.from_bundle(tmp_path / "b", backend="onnx")
    with pytest.raises(UsageError, match="multiples of 32"):
        build(ckpt, tmp_path / "c", quant="int8", block_size=16, graphs=False)
    assert not (tmp_path / "c").exists()


def test_blocks_of_16_have_no_native_weights(tmp_path: Path) -> None:
    ckpt = write_tiny_checkpoint(tmp_path / "ckpt")
    build(ckpt, tmp_path / "b", quant="int8", block_size=16)
    bundle = open_bundle(tmp_path / "b")
    assert WEIGHTS not in bundle
    if "la_trt._native" in sys.modules:
        with pytest.raises(BundleError, match="native"):
            NativeEngine(bundle)


def test_without_the_module_the_engine_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "la_trt._native", None)
    ckpt = write_tiny_checkpoint(tmp_path / "ckpt")
    build(ckpt, tmp_path / "b")
    assert WEIGHTS in open_bundle(tmp_path / "b")
    with pytest.raises(MachineError, match="onnx"):
        LookAgain.from_bundle(tmp_path / "b", backend="native")


def test_a_thread_that_cannot_start_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> NoReturn:
        raise RuntimeError("Resource temporarily unavailable")

    module = SimpleNamespace(levels=lambda: ["plain"], Decoder=refuse)
    monkeypatch.setitem(sys.modules, "la_trt._native", module)
    ckpt = write_tiny_checkpoint(tmp_path / "ckpt")
    build(ckpt, tmp_path / "b", graphs=False)
    with pytest.raises(MachineError, match=r"1000 threads .*unavailable"):
        NativeEngine(open_bundle(tmp_path / "b"), threads=1000, isa="plain")


@pytest.mark.parametrize(
    ("part", "sizes"),
    [
        ("text", {"num_attention_heads": 67108868, "num_key_value_heads": 2}),
        ("text", {"num_attention_heads": 1 << 20, "num_key_value_heads": 2}),
        ("text", {"vocab_size": 1 << 31}),
        ("text", {"intermediate_size": 1 << 30}),
        ("vision", {"spatial_merge_size": 65, "window_size": 1 << 20}),
        ("vision", {"hidden_size": 1 << 19, "num_heads": 1 << 10}),
        ("vision", {"in_channels": 1 << 20}),
    ],
)
def test_sizes_whose_products_overflow_are_refused(part: str, sizes: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="inconsistent sizes"):
        replace(getattr(make_config(), part), **sizes)
