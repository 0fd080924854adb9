"""native.safetensors: weights packed into the tiles that the native CPU kernels read.

One layout for every instruction set, described in csrc/kernels/cpu/linear.h: tiles of 16
outputs, the input running within a tile; codes with one half-precision scale for 32 or 128 of
them.
The file is mapped and used as it is. Packing is numpy alone, so a bundle that was built where
there is no compiler runs natively elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from build_engines.layers import WeightSource
from build_engines.progress import Progress
from build_engines.quantize import Quant, quantise_blocks
from la_trt.config import ModelConfig
from la_trt.errors import CheckpointError
from la_trt.files.safetensors_writer import TensorSource, write_safetensors

FloatFormat = Literal["float32", "bfloat16"]
Format = Literal[FloatFormat, "int8", "int4"]
LANES, BLOCK = 16, 32
LAYOUT = "1"
_ROWS_AT_ONCE_BYTES = 4 << 20
_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixSpec:
    """A packed matrix: checkpoint tensors `names`, stacked along the output, under `label`."""

    label: str
    names: tuple[str, ...]
    bias: bool
    tower: bool = False


def formats(quant: Quant, dtype: FloatFormat = "float32") -> tuple[Format, Format]:
    """(decoder, vision tower): a quantised tower is int8, as in the ONNX graph."""
    if quant == "none":
        return dtype, dtype
    return quant, "int8"


def write_native(
    path: Path,
    config: ModelConfig,
    source: WeightSource,
    *,
    decoder: Format,
    tower: Format,
    block_size: int,
    progress: Progress,
) -> None:
    """Write `path`. `block_size` (a multiple of 32): weights that share a scale.

    `progress` advances once. Memory: a few megabytes, and what a piece of a tensor takes.
    """
    assert block_size % BLOCK == 0, f"block_size: expected a multiple of {BLOCK}, got {block_size}"
    tensors = [TensorSource(n, np.dtype("<f4"), source.shape(n), partial(_vector, source, n))
               for n in _norms(config)]  # fmt: skip
    for spec in matrices(config):
        tensors += _matrix_sources(spec, source, tower if spec.tower else decoder, block_size)
    metadata = {"layout": LAYOUT, "decoder": decoder, "tower": tower}
    write_safetensors(path, tensors, metadata=metadata)
    progress.advance()


def matrices(config: ModelConfig) -> Iterator[MatrixSpec]:
    """Every linear layer of the model, as the native engine asks for it."""
    for i in range(config.text.num_hidden_layers):
        attn, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        qkv = tuple(f"{attn}.{p}_proj" for p in "qkv")
        yield MatrixSpec(label=f"{attn}.qkv_proj", names=qkv, bias=True)
        yield MatrixSpec(label=f"{attn}.o_proj", names=(f"{attn}.o_proj",), bias=False)
        yield from _gated(mlp, bias=False, tower=False)
    yield MatrixSpec(label="model.embed_tokens", names=("model.embed_tokens",), bias=False)
    if not config.text.tie_word_embeddings:
        yield MatrixSpec(label="lm_head", names=("lm_head",), bias=False)
    patch = "visual.patch_embed.proj"
    yield MatrixSpec(label=patch, names=(patch,), bias=False, tower=True)
    for i in range(config.vision.depth):
        attn, mlp = f"visual.blocks.{i}.attn", f"visual.blocks.{i}.mlp"
        for name in (f"{attn}.qkv", f"{attn}.proj"):
            yield MatrixSpec(label=name, names=(name,), bias=True, tower=True)
        yield from _gated(mlp, bias=True, tower=True)
    for name in ("visual.merger.mlp.0", "visual.merger.mlp.2"):
        yield MatrixSpec(label=name, names=(name,), bias=True, tower=True)


def _gated(mlp: str, *, bias: bool, tower: bool) -> Iterator[MatrixSpec]:
    names = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
    yield MatrixSpec(label=f"{mlp}.gate_up_proj", names=names, bias=bias, tower=tower)
    down = f"{mlp}.down_proj"
    yield MatrixSpec(label=down, names=(down,), bias=bias, tower=tower)


def _norms(config: ModelConfig) -> Iterator[str]:
    for i in range(config.text.num_hidden_layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{i}.{name}.weight"
    yield "model.norm.weight"
    for i in range(config.vision.depth):
        yield from (f"visual.blocks.{i}.{name}.weight" for name in ("norm1", "norm2"))
    yield "visual.merger.ln_q.weight"


def _vector(source: WeightSource, *names: str) -> NDArray[np.float32]:
    return np.concatenate([source.rows(name) for name in names])


def _matrix_sources(
    spec: MatrixSpec, source: WeightSource, weight_format: Format, block_size: int
) -> Iterator[TensorSource]:
    weights = [f"{name}.weight" for name in spec.names]
    sizes = [source.shape(name)[0] for name in weights]
    n, k = sum(sizes), int(np.prod(source.shape(weights[0])[1:]))
    tiles, blocks, shared = -(-n // LANES), -(-k // BLOCK), scale_size(block_size)
    shapes: dict[Format, tuple[Any, tuple[int, ...]]] = {
        "float32": ("<f4", (tiles, k, LANES)),
        "bfloat16": (ml_dtypes.bfloat16, (tiles, -(-k // 2), LANES, 2)),
        "int8": ("u1", (tiles, blocks, 8, LANES, 4)),
        "int4": ("u1", (tiles, blocks, 4, LANES, 4)),
    }
    dtype, shape = shapes[weight_format]
    read = partial(_tile_rows, source, weights, sizes, k)

    def pieces(what: Literal["weight", "scale"]) -> Iterator[NDArray[Any]]:
        for rows_NK in read():
            if weight_format not in _BITS:
                yield pack_float(rows_NK, weight_format)
            else:
                packed = pack_codes(rows_NK, _BITS[weight_format], block_size, spec.label)
                yield packed[0 if what == "weight" else 1]
        for name in weights:
            source.release(name)

    yield TensorSource(f"{spec.label}.weight", np.dtype(dtype), shape, partial(pieces, "weight"))
    if weight_format in _BITS:
        scale_shape = (tiles, -(-k // shared), LANES)
        half = np.dtype("<f2")
        yield TensorSource(f"{spec.label}.scale", half, scale_shape, partial(pieces, "scale"))
    if spec.bias:
        biases = [f"{name}.bias" for name in spec.names]
        vector = partial(_vector, source, *biases)
        yield TensorSource(f"{spec.label}.bias", np.dtype("<f4"), (n,), vector)


def _tile_rows(
    source: WeightSource, names: list[str], sizes: list[int], k: int
) -> Iterator[NDArray[np.float32]]:
    """The stacked rows, some whole tiles at a time; zeros fill the last tile."""
    n = sum(sizes)
    step = max(1, _ROWS_AT_ONCE_BYTES // (4 * k * LANES)) * LANES
    bounds = np.cumsum([0, *sizes]).tolist()
    for start in range(0, n, step):
        stop = min(n, start + step)
        rows_NK = np.zeros((-(-(stop - start) // LANES) * LANES, k), np.float32)
        for name, low, high in zip(names, bounds, bounds[1:], strict=False):
            first, last = max(start, low), min(stop, high)
            if first < last:
                part = source.rows(name, first - low, last - low)
                rows_NK[first - start : last - start] = part.reshape(last - first, k)
        yield rows_NK


def pack_float(rows_NK: NDArray[np.float32], weight_format: Format) -> NDArray[Any]:
    """Rows (N, K), N a multiple of 16, as tiles: float32 (N/16, K, 16) or bfloat16 pairs."""
    n, k = rows_NK.shape
    if weight_format == "float32":
        return np.ascontiguousarray(rows_NK.reshape(n // LANES, LANES, k).transpose(0, 2, 1))
    rows_NK = np.pad(rows_NK, ((0, 0), (0, k % 2)))
    pairs = rows_NK.astype(ml_dtypes.bfloat16).reshape(n // LANES, LANES, -1, 2)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3))


def scale_size(block_size: int) -> int:
    """Weights along the input behind each stored scale, and activations that share one."""
    return 4 * BLOCK if block_size % (4 * BLOCK) == 0 else BLOCK


def pack_codes(
    rows_NK: NDArray[np.float32], bits: int, block_size: int, label: str = "weight"
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Rows (N, K), N a multiple of 16, as (codes, scales) in tiles; codes as in `quantize.py`.

    One scale for `scale_size` weights: where fewer blocks of 32 share one, it is repeated.
    Raises CheckpointError (E_WEIGHT_RANGE) where a scale exceeds half precision.
    """
    n, k = rows_NK.shape
    q_NK, scale = quantise_blocks(rows_NK, bits, block_size)
    blocks, shared = -(-k // BLOCK), scale_size(block_size)
    scale = np.repeat(scale, block_size // shared, axis=1)[:, : -(-k // shared)]
    if np.abs(scale).max(initial=0) > np.finfo(np.float16).max:
        raise CheckpointError(
            f"tensor {label!r}: weights up to {np.abs(rows_NK).max():.3g} do not fit a scale in "
            "half precision\nbuild with --quant none",
            name="E_WEIGHT_RANGE",
        )
    offset = 1 << (bits - 1)
    codes = np.pad(q_NK.astype(np.int16), ((0, 0), (0, blocks * BLOCK - k))) + offset
    codes = codes.astype(np.uint8)
    if bits == 4:
        halves = codes.reshape(n // LANES, LANES, blocks, 2, 4, 4)
        codes = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    packed = codes.reshape(n // LANES, LANES, blocks, -1, 4).transpose(0, 2, 3, 1, 4)
    halved = scale.reshape(n // LANES, LANES, -1).transpose(0, 2, 1).astype(np.float16)
    return np.ascontiguousarray(packed), np.ascontiguousarray(halved)
