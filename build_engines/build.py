"""Checkpoint to bundle: graphs, tokenizer files, and a check that the result runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from build_engines.decoder import write_decoder
from build_engines.native import BLOCK, FloatFormat, formats, write_native
from build_engines.plain import write_plain_decoder
from build_engines.progress import Progress, ProgressCallback
from build_engines.quantize import Quant
from build_engines.verify import check_decoder, check_vision
from build_engines.vision import write_vision
from la_trt.config import ModelConfig
from la_trt.engines.native import WEIGHTS
from la_trt.errors import CheckpointError, UsageError
from la_trt.files.bundle import BundleLimits, BundleWriter, write_bundle
from la_trt.files.checkpoint import Checkpoint, open_checkpoint
from la_trt.processor.features import ImageConfig
from la_trt.processor.template import find_template
from la_trt.processor.tokenizer import Vocabulary
from la_trt.tags import ALL_TAGS

VISION_GRAPH, DECODER_GRAPH, PLAIN_GRAPH = "vision.onnx", "decoder.onnx", "decoder_plain.onnx"
PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")
PORTABLE_QUANTS = ("none", "int8", "int4")  # fp8 is TensorRT's alone
BLOCK_SIZES = (16, 32, 64, 128, 256)


def build(
    ckpt: Path,
    output: Path,
    *,
    quant: Quant = "none",
    block_size: int = 32,
    dtype: FloatFormat = "float32",
    max_model_len: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    graphs: bool = True,
    progress: ProgressCallback | None = None,
) -> None:
    """The bundle at `output`, all or nothing, from the checkpoint directory `ckpt`.

    `block_size`: weights that share a scale along the input. `dtype`: of weights that are not
    quantised; bfloat16 is for the native engine alone. Limits not given are the checkpoint's own.
    `graphs`: without, it has weights for the native engine alone, and nothing is run to check it.
    `progress(stage, done, total)`. Memory: about two float32 copies of the largest tensor, then
    what ONNX Runtime needs to load the result.
    Raises UsageError, CheckpointError, MachineError, GateError (E_SELF_CHECK).
    """
    check_options(quant, block_size)
    if not graphs and not _fits_native(quant, block_size):
        raise UsageError(f"block_size {block_size}: the native engine takes multiples of {BLOCK}")
    if dtype != "float32" and (graphs or quant != "none"):
        raise UsageError(f"dtype {dtype}: only the native engine has it, for quant none")
    source = open_source(ckpt, progress)
    config = source.config
    image = image_config(ckpt, config.vision.patch_size, min_pixels, max_pixels)
    limits = bundle_limits(source, image, max_model_len)
    request = {
        "quant": quant,
        "block_size": block_size,
        "dtype": None if dtype == "float32" else dtype,
        "max_model_len": max_model_len,
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
    }
    total = config.vision.depth + config.text.num_hidden_layers + 6 if graphs else 1
    count = Progress(progress, total)
    with write_bundle(
        output,
        config=config,
        tags=single_tags(source),
        limits=limits,
        quant=quant,
        request=request,
        progress=hashing(progress),
    ) as bundle:
        weights = CheckpointWeights(source)
        if graphs:
            _write_graphs(bundle, weights, source, quant, block_size, count)
        count.begin("native weights")
        _write_native(bundle, weights, source, quant, block_size, dtype, count)
        if graphs:
            count.begin("self-check")
            _check_graphs(bundle, source.config, count)
        add_processor_files(bundle, source, image)


def add_processor_files(bundle: BundleWriter, source: Checkpoint, image: ImageConfig) -> None:
    """Tokenizer, the chat template that counts, and image sizes."""
    template = find_template(source.path)
    counts = None if template is None else template[0].name
    for name, path in source.tokenizer_files().items():
        if name not in PREPROCESSOR and (name == counts or not name.startswith("chat_template.")):
            bundle.add_file(name, path)
    bundle.add_bytes(PREPROCESSOR[0], json.dumps(image.to_dict(), indent=2).encode() + b"\n")


class CheckpointWeights:
    """Tensors of a checkpoint as float32 copies; mapped pages are given back after use."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._checkpoint.shape(name)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows `start` to `stop` as a new float32 array."""
        data = self._checkpoint.tensor(name)[start:stop]
        if data.dtype == ml_dtypes.bfloat16:  # its bits are the upper half of a float32's
            return (data.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        return np.asarray(data.astype(np.float32))

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system."""
        self._checkpoint.release(name)


def _write_graphs(
    bundle: BundleWriter,
    weights: CheckpointWeights,
    source: Checkpoint,
    quant: Quant,
    block_size: int,
    count: Progress,
) -> None:
    shared: dict[str, Any] = {"quant": quant, "block_size": block_size, "progress": count}
    count.begin("vision graph")
    write_vision(bundle.path(VISION_GRAPH), source.config, weights, **shared)
    count.begin("decoder graph")
    decoder = bundle.path(DECODER_GRAPH)
    write_decoder(decoder, source.config, weights, **shared)
    write_plain_decoder(decoder, bundle.path(PLAIN_GRAPH))


def _check_graphs(bundle: BundleWriter, config: ModelConfig, count: Progress) -> None:
    check_vision(bundle.path(VISION_GRAPH), config)
    count.advance()
    check_decoder(bundle.path(DECODER_GRAPH), config)
    count.advance()
    check_decoder(bundle.path(PLAIN_GRAPH), config, mass=False)
    count.advance()


def _write_native(
    bundle: BundleWriter,
    weights: CheckpointWeights,
    source: Checkpoint,
    quant: Quant,
    block_size: int,
    dtype: FloatFormat,
    count: Progress,
) -> None:
    """Pack the weights for the native engine, whose kernels know no blocks of 16."""
    if not _fits_native(quant, block_size):
        count.advance()
        return
    decoder, tower = formats(quant, dtype)
    path = bundle.path(WEIGHTS)
    write_native(
        path,
        source.config,
        weights,
        decoder=decoder,
        tower=tower,
        block_size=block_size if quant != "none" else BLOCK,
        progress=count,
    )


def _fits_native(quant: Quant, block_size: int) -> bool:
    return quant == "none" or block_size % BLOCK == 0


def check_options(quant: str, block_size: int, *, quants: Sequence[str] = PORTABLE_QUANTS) -> None:
    """Raises UsageError."""
    if quant not in quants:
        todo = "\nadd --backend tensorrt, which alone has it" if quant == "fp8" else ""
        raise UsageError(f"quant: expected one of {', '.join(quants)}, got {quant!r}{todo}")
    if block_size not in BLOCK_SIZES:
        raise UsageError(f"block_size: expected one of {BLOCK_SIZES}, got {block_size}")


def open_source(ckpt: Path, progress: ProgressCallback | None) -> Checkpoint:
    """The checkpoint, its weights checked. Raises CheckpointError."""
    if progress is None:
        return open_checkpoint(ckpt)
    return open_checkpoint(
        ckpt, progress=lambda done, total: progress("checking weights", done, total)
    )


def hashing(progress: ProgressCallback | None) -> Any:
    """The callback of `write_bundle` for the stage of that name."""
    if progress is None:
        return None
    return lambda done, total: progress("hashing", done, total)


def image_config(
    ckpt: Path, patch_size: int, min_pixels: int | None, max_pixels: int | None
) -> ImageConfig:
    """The checkpoint's image sizes with those that were asked for. Raises UsageError."""
    image = ImageConfig.from_directory(Path(ckpt))
    if image.patch_size != patch_size:
        raise CheckpointError(
            f"{ckpt}: the preprocessor's patch_size {image.patch_size} differs from the model's "
            f"{patch_size}\ntake all files from the same checkpoint",
            name="E_PREPROCESSOR",
        )
    asked = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    changes: dict[str, Any] = {k: v for k, v in asked.items() if v is not None}
    for name, value in changes.items():
        if value < 1:
            raise UsageError(f"{name}: expected a positive integer, got {value}")
    low = changes.get("min_pixels", image.min_pixels)
    high = changes.get("max_pixels", image.max_pixels)
    if low > high:
        raise UsageError(f"min_pixels {low} exceeds max_pixels {high}")
    return dataclasses.replace(image, **changes)


def bundle_limits(
    source: Checkpoint, image: ImageConfig, max_model_len: int | None
) -> BundleLimits:
    """The limits of a bundle, within the model's. Raises UsageError."""
    longest = source.config.text.max_position_embeddings
    length = longest if max_model_len is None else max_model_len
    if not 1 <= length <= longest:
        raise UsageError(f"max_model_len: expected 1 to {longest} (the model's), got {length}")
    return BundleLimits(
        max_model_len=length, min_pixels=image.min_pixels, max_pixels=image.max_pixels
    )


def single_tags(source: Checkpoint) -> dict[str, int]:
    """The tags that are single tokens of this checkpoint, with their ids."""
    vocabulary = Vocabulary.from_file(source.tokenizer_files()["tokenizer.json"])
    ids = {tag: vocabulary.token_id(tag) for tag in ALL_TAGS}
    return {tag: index for tag, index in ids.items() if index is not None}
