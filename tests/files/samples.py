"""Tiny model directories and bundles for tests to open and to spoil."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from la_trt.config import ModelConfig, TextConfig, VisionConfig
from la_trt.files.bundle import BundleLimits, write_bundle
from la_trt.files.checkpoint import expected_tensors
from la_trt.files.safetensors_writer import TensorSource, write_safetensors

SPECIALS = {
    "<|image_pad|>": 30,
    "<|video_pad|>": 31,
    "<|vision_start|>": 32,
    "<|vision_end|>": 33,
}


def save_arrays(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays that are in memory already; as `write_safetensors`."""
    sources = [
        TensorSource(name, array.dtype, array.shape, partial(np.asarray, array))
        for name, array in arrays.items()
    ]
    write_safetensors(path, sources, metadata=metadata)


def make_config(*, tied: bool = True) -> ModelConfig:
    return ModelConfig(
        text=TextConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            mrope_section=(2, 1, 1),
            tie_word_embeddings=tied,
        ),
        vision=VisionConfig(
            depth=2,
            hidden_size=8,
            intermediate_size=12,
            num_heads=1,
            out_hidden_size=16,
            patch_size=2,
            window_size=8,
            fullatt_block_indexes=(1,),
        ),
        image_token_id=30,
        video_token_id=31,
        vision_start_token_id=32,
        vision_end_token_id=33,
        eos_token_ids=(2,),
    )


def make_tensors(config: ModelConfig, dtype: Any = ml_dtypes.bfloat16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(dtype)
        for name, shape in expected_tensors(config).items()
    }


def make_tokenizer() -> dict[str, Any]:
    return {
        "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(30)}, "unk_token": "w0"},
        "added_tokens": [
            {"id": index, "content": token, "special": True} for token, index in SPECIALS.items()
        ],
    }


def write_model(path: Path, *, tied: bool = True, shards: int = 0, newer: bool = False) -> Path:
    """A valid model directory; `shards` > 0 splits it, `newer` uses the newer names."""
    config = make_config(tied=tied)
    tensors = make_tensors(config)
    if newer:
        tensors = {_newer(name): array for name, array in tensors.items()}
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    (path / "tokenizer.json").write_text(json.dumps(make_tokenizer()))
    (path / "generation_config.json").write_text("{}")
    if not shards:
        save_arrays(path / "model.safetensors", tensors)
        return path
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        save_arrays(path / name, part)
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def header_of(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def set_header(path: Path, header: dict[str, Any] | bytes, *, data: bytes | None = None) -> None:
    """Replace the header of a safetensors file, and its data where given."""
    old = path.read_bytes()
    body = old[8 + int.from_bytes(old[:8], "little") :] if data is None else data
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite a JSON file through a function that changes its value in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _newer(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def build_bundle(path: Path, *, seed: int = 0) -> Path:
    """A valid bundle of three small files, one in a subdirectory."""
    rng = np.random.default_rng(seed)
    with write_bundle(
        path,
        config=make_config(),
        tags={"<REFLECTION>": 34, "</REFLECTION>": 35},
        limits=BundleLimits(max_model_len=64, min_pixels=16, max_pixels=4096),
        quant="none",
        request={"ckpt": "tiny", "max_model_len": None, "seed": seed},
    ) as writer:
        writer.add_bytes("tokenizer.json", json.dumps(make_tokenizer()).encode())
        writer.add_bytes("decoder.onnx", rng.bytes(500))
        writer.add_bytes("tensorrt/sm90/vision.engine", rng.bytes(300))
    return path
