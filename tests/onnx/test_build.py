"""`build`: a checkpoint directory becomes a bundle that runs, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from build_engines import build
from build_engines.verify import check_decoder
from la_trt.api import LookAgain
from la_trt.bindings import decoder_inputs, decoder_outputs, vision_inputs, vision_outputs
from la_trt.engines.onnx import OnnxEngine
from la_trt.engines.onnx_session import CPU, open_session
from la_trt.engines.torch import TorchEngine
from la_trt.errors import BundleError, CheckpointError, GateError, MachineError, UsageError
from la_trt.files.bundle import open_bundle
from la_trt.processor.features import ImageConfig
from la_trt.processor.template import ChatTemplate
from la_trt.tags import ALL_TAGS
from tests.engines.script import text_step
from tests.model.configs import random_model
from tests.onnx.helpers import graph_bundle
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("build") / "ckpt")


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_bundle_is_complete_and_answers(checkpoint: Path, quant: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build(
        checkpoint,
        tmp_path / "b",
        quant=quant,
        max_model_len=512,
        max_pixels=112 * 112,
        progress=lambda *step: seen.append(step),
    )
    bundle = open_bundle(tmp_path / "b")
    assert {"vision.onnx", "vision.onnx.data", "decoder.onnx", "decoder.onnx.data"} < set(
        bundle.names()
    )
    assert "tokenizer.json" in bundle
    assert bundle.manifest.quant == quant
    assert bundle.limits.max_model_len == 512
    assert ImageConfig.from_directory(bundle.path).max_pixels == 112 * 112
    assert set(bundle.tags) == set(ALL_TAGS)
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    expected = [
        "checking weights",
        "vision graph",
        "decoder graph",
        "native weights",
        "self-check",
        "hashing",
    ]
    assert stages == expected
    for stage in stages:
        done = [d for s, d, _ in seen if s == stage]
        assert done == sorted(done)
        assert all(0 <= d <= t for s, d, t in seen if s == stage)
    la = LookAgain.from_bundle(bundle.path, backend="onnx", threads=1)
    result = la.generate([Image.new("RGB", (90, 60), "red")], "How many?", max_tokens=5)
    assert 1 <= len(result.tokens) <= 5


def test_float32_bundle_equals_torch(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "b")
    engine = OnnxEngine(open_bundle(tmp_path / "b"), threads=1, max_batch=1)
    torch_engine = TorchEngine.from_pretrained(checkpoint, max_batch=1)
    for e in (engine, torch_engine):
        assert e.alloc(64) == 0
    step = text_step(0, list(range(40)), 0)
    got, expected = engine.forward(step).logits, torch_engine.forward(step).logits
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_bf16_checkpoint_is_read_exactly(tmp_path: Path) -> None:
    """Float32 weights of the graph are the bf16 values, bit for bit."""
    import ml_dtypes

    from build_engines.build import CheckpointWeights
    from la_trt.files.checkpoint import open_checkpoint
    from la_trt.files.safetensors import SafetensorsFile
    from tests.files.samples import save_arrays

    path = write_tiny_checkpoint(tmp_path / "ckpt")
    file = SafetensorsFile(path / "model.safetensors")
    halves = {n: file.tensor(n).astype(ml_dtypes.bfloat16) for n in file.names()}
    (path / "model.safetensors").unlink()
    save_arrays(path / "model.safetensors", halves)
    weights = CheckpointWeights(open_checkpoint(path))
    for name, half in halves.items():
        np.testing.assert_array_equal(weights.rows(name), half.astype(np.float32))
        np.testing.assert_array_equal(weights.rows(name, 1, 3), half[1:3].astype(np.float32))


def test_only_the_chat_template_that_counts_goes_along(tmp_path: Path) -> None:
    """So that no reader of the bundle can take the other one."""
    path = write_tiny_checkpoint(tmp_path / "m")
    (path / "chat_template.json").write_text('{"chat_template": "N"}')
    (path / "chat_template.jinja").write_text("J")
    build(path, tmp_path / "b", graphs=False)
    assert not (tmp_path / "b" / "chat_template.jinja").exists()
    assert ChatTemplate.from_directory(tmp_path / "b").source == "N"
    (path / "chat_template.json").unlink()
    build(path, tmp_path / "b", graphs=False)
    assert ChatTemplate.from_directory(tmp_path / "b").source == "J"


def test_wrong_options_and_checkpoints_leave_nothing(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "b"
    wrong: list[dict[str, object]] = [
        {"quant": "int3"},
        {"block_size": 24},
        {"max_model_len": 0},
        {"max_model_len": 1 << 20},
        {"min_pixels": 0},
        {"min_pixels": 4000, "max_pixels": 3999},
    ]
    for options in wrong:
        with pytest.raises(UsageError):
            build(checkpoint, output, **options)
    with pytest.raises(CheckpointError):
        build(tmp_path / "nothing", output)
    assert list(tmp_path.iterdir()) == []


def test_self_check_refuses_weights_that_overflow(tmp_path: Path) -> None:
    """Finite weights whose products are not: the build fails and leaves nothing."""
    from la_trt.files.safetensors import SafetensorsFile
    from tests.files.samples import save_arrays

    path = write_tiny_checkpoint(tmp_path / "ckpt")
    file = SafetensorsFile(path / "model.safetensors")
    tensors = {n: file.tensor(n).copy() for n in file.names()}
    tensors["model.norm.weight"][:] = 3e38
    save_arrays(path / "model.safetensors", tensors)
    with pytest.raises(GateError, match="not finite"):
        build(path, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_absent_provider_is_an_error(tmp_path: Path) -> None:
    bundle = graph_bundle(random_model(0), tmp_path)
    with pytest.raises(MachineError, match="CUDAExecutionProvider") as refused:
        OnnxEngine(bundle, providers=("CUDAExecutionProvider", CPU))
    assert refused.value.name == "E_PROVIDER"


def test_other_graphs_are_refused(tmp_path: Path) -> None:
    """Another model's graph, a graph with a binding renamed, and one that is no graph."""
    bundle = graph_bundle(random_model(0), tmp_path / "a")
    config = bundle.config
    decoder = (decoder_inputs(config), decoder_outputs(config))
    vision = (vision_inputs(config), vision_outputs(config))
    shared = {"threads": 1, "providers": (CPU,)}
    with pytest.raises(BundleError, match="binding"):
        open_session(bundle.file("vision.onnx"), *decoder, **shared)
    other = graph_bundle(random_model(4), tmp_path / "b")
    with pytest.raises(BundleError, match="expected"):
        open_session(other.file("decoder.onnx"), *decoder, **shared)
    model = onnx.load(bundle.file("vision.onnx"), load_external_data=False)
    model.graph.output[0].name = "embeds"
    model.graph.node[-1].output[0] = "embeds"
    renamed = tmp_path / "a" / "renamed.onnx"
    renamed.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="visual_embeds"):
        open_session(renamed, *vision, **shared)
    renamed.write_bytes(b"\x08\x07nonsense")
    with pytest.raises(BundleError) as refused:
        open_session(renamed, *vision, **shared)
    assert refused.value.name == "E_GRAPH"


def test_self_check_notices_a_wrong_mass(tmp_path: Path) -> None:
    """A graph that scales the mass does not pass as built."""
    config = random_model(2).config
    bundle = graph_bundle(random_model(2), tmp_path)
    path = bundle.file("decoder.onnx")
    check_decoder(path, config)
    model = onnx.load(path, load_external_data=False)
    (scale,) = (
        t
        for n in model.graph.node
        if n.name == "visual_mass"
        for t in model.graph.initializer
        if t.name == n.input[1]
    )
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.9), scale.name))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GateError, match="sums to"):
        check_decoder(path, config)


def test_request_is_recorded(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "b", quant="int4", block_size=128)
    raw = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert raw["request"]["block_size"] == 128
    assert raw["quant"] == "int4"


def test_limits_of_the_engine(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "b", max_model_len=100)
    bundle = open_bundle(tmp_path / "b")
    assert OnnxEngine(bundle, threads=1).limits.max_len == 100
    for options in ({"max_len": 101}, {"max_len": 0}, {"max_batch": 0}):
        with pytest.raises(UsageError):
            OnnxEngine(bundle, threads=1, **options)
