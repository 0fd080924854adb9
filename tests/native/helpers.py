"""Native engines of models that are in memory, and what keeps them from running here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.rounding import LARGEST, round_inputs
from build_engines.native import (
    BLOCK,
    LANES,
    Format,
    matrices,
    pack_codes,
    pack_float,
    scale_size,
    write_native,
)
from build_engines.progress import Progress
from la_trt.engines.native import WEIGHTS, NativeEngine
from la_trt.files.bundle import Bundle, BundleLimits
from la_trt.files.manifest import FileEntry, Manifest
from la_trt.model import QwenVL
from tests.onnx.helpers import ModelWeights

needs_native = pytest.mark.skipif(
    find_spec("la_trt._native") is None, reason="la_trt._native was not built: make native"
)


def native_bundle(
    model: QwenVL,
    path: Path,
    *,
    decoder: Format = "float32",
    tower: Format = "float32",
    block_size: int = BLOCK,
    max_len: int = 2048,
) -> Bundle:
    """A bundle of the packed weights alone."""
    path.mkdir(parents=True, exist_ok=True)
    write_native(
        path / WEIGHTS,
        model.config,
        ModelWeights(model),
        decoder=decoder,
        tower=tower,
        block_size=block_size,
        progress=Progress(None, 0),
    )
    manifest = Manifest(
        la_trt_version="test",
        config=model.config,
        tags={},
        limits=BundleLimits(max_model_len=max_len, min_pixels=1, max_pixels=1 << 20),
        quant="none",
        request={},
        files=tuple(FileEntry(f.name, f.stat().st_size, "") for f in path.iterdir()),
    )
    return Bundle(path, manifest)


def make_native_engine(
    model: QwenVL,
    path: Path,
    *,
    decoder: Format = "float32",
    tower: Format = "float32",
    block_size: int = BLOCK,
    max_len: int = 2048,
    **options: Any,
) -> NativeEngine:
    """An engine with two threads unless `options` say otherwise."""
    bundle = native_bundle(
        model, path, decoder=decoder, tower=tower, block_size=block_size, max_len=max_len
    )
    return NativeEngine(bundle, **{"threads": 2, "max_batch": 4, "max_len": max_len, **options})


def quantised_activations(
    model: QwenVL, decoder: Format, tower: Format, block_size: int = BLOCK
) -> QwenVL:
    """`model` itself, the input of every linear layer rounded as it meets weights in codes."""
    group = scale_size(block_size)
    round_inputs(model, decoder=LARGEST[decoder], tower=LARGEST.get(tower), group=group)
    return model


def unpacked(packed: Any, weight_format: Format, n: int, k: int) -> np.ndarray:
    """The rows (N, K) that packed float tiles stand for."""
    if weight_format == "float32":
        rows = packed.transpose(0, 2, 1)
    else:
        rows = packed.transpose(0, 2, 1, 3).astype(np.float32)
    return rows.reshape(-1, packed.shape[1] * (1 if weight_format == "float32" else 2))[:n, :k]


def unpacked_codes(codes: np.ndarray, scale: np.ndarray, n: int, k: int) -> np.ndarray:
    """The rows (N, K) that packed codes and their scales stand for."""
    tiles, blocks, groups = codes.shape[:3]
    if groups == 4:
        both = np.stack([codes & 15, codes >> 4], axis=2)
        values = both.transpose(0, 4, 1, 2, 3, 5).reshape(tiles, LANES, blocks, BLOCK) - 8.0
    else:
        values = codes.transpose(0, 3, 1, 2, 4).reshape(tiles, LANES, blocks, BLOCK) - 128.0
    of_blocks = np.repeat(scale, 4, axis=1)[:, :blocks] if scale.shape[1] < blocks else scale
    rows = values * of_blocks.transpose(0, 2, 1)[..., None].astype(np.float32)
    return rows.reshape(tiles * LANES, -1)[:n, :k].astype(np.float32)


def round_trip(weight: np.ndarray, weight_format: Format, block_size: int = BLOCK) -> np.ndarray:
    """`weight` (N, K) as the engine sees it once packed."""
    n, k = weight.shape
    rows = np.pad(weight, ((0, -n % LANES), (0, 0))).astype(np.float32)
    if weight_format in ("float32", "bfloat16"):
        return unpacked(pack_float(rows, weight_format), weight_format, n, k)
    bits = 8 if weight_format == "int8" else 4
    return unpacked_codes(*pack_codes(rows, bits, block_size), n, k)


def round_model(model: QwenVL, decoder: Format, tower: Format, block_size: int = BLOCK) -> QwenVL:
    """`model` itself, its matrices replaced by what their packed form stands for."""
    state = model.state_dict()
    for spec in matrices(model.config):
        for name in spec.names:
            tensor = state[f"{name}.weight"]
            flat = tensor.numpy().reshape(len(tensor), -1)
            rounded = round_trip(flat, tower if spec.tower else decoder, block_size)
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(rounded.reshape(tensor.shape).copy()))
    return model
