"""Bundles that the native engine opens, and those that it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from build_engines.build import build
from la_trt.api import LookAgain
from la_trt.assets import TINY_CHECKPOINT
from la_trt.engines.native import WEIGHTS, NativeEngine
from la_trt.errors import BundleError, MachineError, UsageError
from la_trt.files.bundle import open_bundle
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
