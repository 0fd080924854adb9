"""Bundles and engines of models that are in memory, without a checkpoint on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_engines.decoder import write_decoder
from build_engines.plain import write_plain_decoder
from build_engines.progress import Progress
from build_engines.quantize import QuantisedMatrix, quantise
from build_engines.vision import write_vision
from la_trt.engines.onnx import OnnxEngine
from la_trt.files.bundle import Bundle, BundleLimits
from la_trt.files.manifest import FileEntry, Manifest
from la_trt.model import QwenVL


def dequantise(matrix: QuantisedMatrix) -> NDArray[np.float32]:
    """The float32 matrix (K, N) that the codes stand for."""
    k, n = matrix.shape
    q = matrix.q
    if matrix.bits == 4:
        low = (q << 4).view(np.int8) >> 4
        q = np.stack([low, q.view(np.int8) >> 4], axis=-1).reshape(-1)[: k * n].reshape(k, n)
    scale = np.repeat(matrix.scale, matrix.block_size, axis=0)[:k]
    return np.asarray(q * scale, np.float32)


class ModelWeights:
    """The tensors of a model, as the graph writers read them."""

    def __init__(self, model: QwenVL) -> None:
        self._tensors = {name: t.numpy() for name, t in model.state_dict().items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        return self._tensors[name][start:stop].astype(np.float32)

    def release(self, name: str) -> None:
        assert name in self._tensors


class RoundedWeights(ModelWeights):
    """The float32 numbers that the codes of a quantised build stand for."""

    def __init__(self, model: QwenVL, bits: int, block_size: int) -> None:
        super().__init__(model)
        for name, weight in self._tensors.items():
            if weight.ndim > 1:
                flat = weight.reshape(len(weight), -1)
                tower_bits = 8 if name.startswith("visual.") else bits
                codes = quantise(lambda a, b, w=flat: w[a:b], flat.shape, tower_bits, block_size)
                self._tensors[name] = dequantise(codes).T.reshape(weight.shape).copy()


def graph_bundle(
    model: QwenVL,
    path: Path,
    *,
    quant: Any = "none",
    block_size: int = 32,
    max_len: int = 2048,
    weights: ModelWeights | None = None,
) -> Bundle:
    """A bundle of the two graphs alone."""
    path.mkdir(parents=True, exist_ok=True)
    weights = weights or ModelWeights(model)
    shared: dict[str, Any] = {"quant": quant, "block_size": block_size}
    write_vision(path / "vision.onnx", model.config, weights, **shared, progress=Progress(None, 0))
    write_decoder(
        path / "decoder.onnx", model.config, weights, **shared, progress=Progress(None, 0)
    )
    write_plain_decoder(path / "decoder.onnx", path / "decoder_plain.onnx")
    manifest = Manifest(
        la_trt_version="test",
        config=model.config,
        tags={},
        limits=BundleLimits(max_model_len=max_len, min_pixels=1, max_pixels=1 << 20),
        quant=quant,
        request={},
        files=tuple(FileEntry(f.name, f.stat().st_size, "") for f in path.iterdir()),
    )
    return Bundle(path, manifest)


def make_onnx_engine(
    model: QwenVL,
    path: Path,
    *,
    quant: Any = "none",
    block_size: int = 32,
    max_batch: int = 4,
    max_len: int = 2048,
    weights: ModelWeights | None = None,
    mass: bool = True,
) -> OnnxEngine:
    """An engine with one thread."""
    bundle = graph_bundle(
        model, path, quant=quant, block_size=block_size, max_len=max_len, weights=weights
    )
    return OnnxEngine(bundle, threads=1, max_batch=max_batch, max_len=max_len, mass=mass)
