"""Real plans, built by TensorRT-RTX without a GPU. Nothing here is run: an engine cannot even be
read without a GPU. What is in a plan is read from its own list of operators.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_engines.progress import Progress
from build_engines.tensorrt.bundle import (
    KV_DTYPES,
    TensorRTOptions,
    build_tensorrt,
    write_graph,
)
from build_engines.tensorrt.plan import build_plan, check_plan, count_in_plan
from build_engines.tensorrt.profiles import decoder_profiles, vision_profiles
from la_trt.assets import TINY_CHECKPOINT
from la_trt.config import ModelConfig
from la_trt.engines.tensorrt_library import (
    TensorRT,
    load_tensorrt,
    name_rtx_for_parser,
    plugin_library,
    register_plugins,
)
from la_trt.engines.tensorrt_record import read_record
from la_trt.errors import MachineError
from la_trt.files.bundle import open_bundle
from la_trt.files.checkpoint import expected_tensors, open_checkpoint
from tests.tensorrt.helpers import plugins_without_kernels, why_no_build

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(bool(why_no_build()), reason=why_no_build()),
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
LAYERS, HIDDEN = 2, 2048


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plugins_without_kernels(tmp_path_factory.mktemp("plugins"))


@pytest.fixture(scope="session")
def trt(plugins: Path) -> TensorRT:
    found, library = load_tensorrt("tensorrt_rtx"), plugin_library(plugins)
    register_plugins(found, library)
    name_rtx_for_parser(found, library)
    return found


class RandomWeights:
    """Weights of the right shapes: pieces of one random sequence."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = expected_tensors(config)
        rng = np.random.default_rng(0)
        self._base = 0.02 * rng.standard_normal(999_983, dtype=np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shapes[name])

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        shape = self.shape(name)
        count = len(range(*slice(start, stop).indices(shape[0])))
        shift = zlib.crc32(f"{name}{start}".encode()) % 99_991
        return np.resize(np.roll(self._base, shift), (count, *shape[1:]))

    def release(self, name: str) -> None:
        assert name in self._shapes


def config_3b() -> ModelConfig:
    """The widths of Qwen2.5-VL-3B, two layers, a small vocabulary."""
    return ModelConfig.from_dict(
        {
            "model_type": "qwen2_5_vl",
            "vocab_size": 4096,
            "hidden_size": HIDDEN,
            "intermediate_size": 11008,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": True,
            "image_token_id": 1,
            "video_token_id": 2,
            "vision_start_token_id": 3,
            "vision_end_token_id": 4,
            "vision_config": {
                "depth": LAYERS,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": HIDDEN,
                "fullatt_block_indexes": [1],
            },
        }
    )


def write(path: Path, kind: str, config: ModelConfig, **options: Any) -> Path:
    target = path / f"{kind}.onnx"
    write_graph(
        target,
        kind,
        config,
        RandomWeights(config),
        TensorRTOptions(sms=(89,), **options),
        Progress(None, 0),
    )
    return target


def operators(plan: Path) -> str:
    """The readable part of a plan."""
    found = re.findall(rb"[\x20-\x7e]{6,}", plan.read_bytes())
    return "\n".join(piece.decode() for piece in found)


FUSED_ON_75 = 6  # of 11 int8 products: where this fails, a newer TensorRT does better


def check_decoder(plan: Path, weights: Path, quant: str, sm: int) -> None:
    """The plugin in every layer, the cache copied nowhere, each of the products (five a layer, and
    the head) fused with what decodes its weights, and the plan within 1.1 times the weights.
    """
    check_plan(plan, num_plugins=2 * LAYERS, max_bytes=int(1.1 * weights.stat().st_size))
    text = operators(plan)
    copies = [line for line in text.splitlines() if re.search("copy|reformat", line, re.I)]
    assert not [line for line in copies if "past_" in line or "present_" in line]
    fused = re.findall(r"runtime_fusion=\{ name=(\w+)", text)
    if quant == "none":
        assert any("Fc" in name for name in fused), set(fused)
    else:
        decoded = [name for name in fused if "CastMulCastFc" in name]
        assert len(decoded) == (FUSED_ON_75 if sm == 75 else 5 * LAYERS + 1), fused
        assert sm == 75 or "CastConc" not in text, "weights are decoded to memory"
    assert re.search(r"__myl_\w*MeanAddSqrtDivMul", text), "RMS norm is not fused"


SMS = (75, 80, 86, 89, 120)
KINDS = [  # activations, weights, KV cache
    ("fp16", "none", None, SMS),
    ("fp16", "int8", "fp8", SMS),
    ("bf16", "none", "int8", SMS[1:]),
    ("bf16", "int4", None, SMS[1:]),
    ("fp16", "fp8", None, SMS[3:]),
]


@pytest.mark.parametrize(("dtype", "quant", "kv_dtype", "sms"), KINDS)
def test_the_decoder_at_the_width_of_3b(
    dtype: str,
    quant: Any,
    kv_dtype: str | None,
    sms: tuple[int, ...],
    trt: TensorRT,
    tmp_path: Path,
) -> None:
    """SM 75, 80, 86, 89 and 120, as far as each has the types."""
    config = config_3b()
    graph = write(tmp_path, "decoder", config, dtype=dtype, quant=quant, kv_dtype=kv_dtype)
    profiles = decoder_profiles(
        config,
        max_batch=8,
        max_len=4096,
        chunk=512,
        quant=quant,
        kv_dtype=KV_DTYPES.get(kv_dtype or "", ""),
    )
    for sm in sms:
        plan = tmp_path / f"sm{sm}.engine"
        build_plan(trt, graph, plan, profiles, sm=sm)
        check_decoder(plan, graph.with_name("decoder.onnx.data"), quant, sm)
        plan.unlink()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_vision_tower_at_the_width_of_3b(dtype: str, trt: TensorRT, tmp_path: Path) -> None:
    config = config_3b()
    graph = write(tmp_path, "vision", config, dtype=dtype)
    profiles = vision_profiles(config, max_pixels=1024 * 28 * 28)
    for sm in SMS[1:] if dtype == "bf16" else SMS:
        plan = tmp_path / f"sm{sm}.engine"
        build_plan(trt, graph, plan, profiles, sm=sm)
        size = graph.with_name("vision.onnx.data").stat().st_size
        check_plan(plan, num_plugins=0, max_bytes=int(1.1 * size))
        plan.unlink()


def test_a_second_profile_stores_integer_weights_twice(trt: TensorRT, tmp_path: Path) -> None:
    """Why such decoders have one profile. Where this fails, a newer TensorRT does better."""
    config = config_3b()
    graph = write(tmp_path, "decoder", config, quant="int8")
    profiles = decoder_profiles(config, max_batch=8, max_len=4096, chunk=512, quant="none")
    assert len(profiles) == 2
    plan = tmp_path / "two.engine"
    build_plan(trt, graph, plan, profiles, sm=89)
    assert plan.stat().st_size > 1.4 * graph.with_name("decoder.onnx.data").stat().st_size


def test_the_cache_is_aliased(
    trt: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder takes the plugin's outputs for its inputs: not allowed to, it refuses."""
    checkpoint = open_checkpoint(TINY_CHECKPOINT)
    graph = write(tmp_path, "decoder", checkpoint.config)
    profiles = decoder_profiles(checkpoint.config, max_batch=2, max_len=512, chunk=64, quant="none")
    monkeypatch.setattr(
        trt.module.IBuilderConfig, "set_preview_feature", lambda self, kind, on: True
    )
    with pytest.raises(MachineError, match="Aliased I/O used by plugin") as refused:
        build_plan(trt, graph, tmp_path / "plan", profiles, sm=89)
    assert refused.value.name == "E_TENSORRT"
    assert not (tmp_path / "plan").exists()


def test_what_the_parser_refuses_is_reported(trt: TensorRT, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    from onnx import TensorProto, helper, save

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="lookagain")
    save(helper.make_model(helper.make_graph([node], "g", [value], [out])), bad)
    with pytest.raises(MachineError, match="NoSuchOperator") as refused:
        build_plan(trt, bad, tmp_path / "plan", (), sm=89)
    assert refused.value.name == "E_TENSORRT"


@pytest.mark.parametrize(
    ("sms", "quant", "kv_dtype"), [(SMS, "int8", None), ((80, 89), "int4", "int8")]
)
def test_the_shipped_checkpoint_becomes_a_bundle(
    sms: tuple[int, ...],
    quant: Any,
    kv_dtype: str | None,
    trt: TensorRT,
    plugins: Path,
    tmp_path: Path,
) -> None:
    """`build --backend tensorrt` for every kind of GPU, with a progress that ends."""
    seen: list[tuple[str, int, int]] = []
    options = TensorRTOptions(sms=sms, quant=quant, kv_dtype=kv_dtype, plugins=plugins, max_batch=2)
    build_tensorrt(
        TINY_CHECKPOINT,
        tmp_path / "b",
        options,
        max_model_len=1024,
        progress=lambda *step: seen.append(step),
    )
    bundle = open_bundle(tmp_path / "b")
    assert not [n for n in bundle.names() if n.endswith((".onnx", ".data"))]
    record = read_record(bundle)
    assert record.sms() == sms
    assert record.kv_dtype == (kv_dtype or "float16")
    assert (record.runtime, record.version) == ("tensorrt_rtx", trt.version)
    assert record.plugin_sha256 == plugin_library(plugins).sha256
    assert len(record.engines) == 2 * len(sms)
    for engine in record.engines:
        plugins_in_plan = count_in_plan(bundle.file(engine.path), "VisualAttention")
        layers = bundle.config.text.num_hidden_layers
        assert (plugins_in_plan >= layers) == (engine.graph == "decoder")
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    for stage in stages:
        done = [d for s, d, _ in seen if s == stage]
        assert done == sorted(done), stage
    assert "decoder engine, SM 80" in stages and "vision engine, SM 89" in stages
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["request"]["sm"] == list(sms)
