"""RGB pixels as the vision tower's flattened patches: resize, rescale, normalise, patchify.

The transforms of Qwen2-VL's image processor. Resizing is Pillow's bicubic on 8-bit pixels, the
one the checkpoints were released with and the one `transformers` uses without torchvision, so
patches agree to float rounding. Torchvision's antialiased bicubic rounds its fixed-point
weights otherwise and differs by at most one level of 255 here and there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from la_trt.errors import CheckpointError, InputError
from la_trt.processor.tokenizer import read_json_object
from la_trt.processor.types import ImageFeatures

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_CONFIG_BYTES = 1 << 20
_TYPES = ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")
_STEPS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How images become patches; defaults are Qwen2.5-VL's. Pixel bounds count h * w."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 16384
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    rescale_factor: float = 1 / 255
    resample: int = int(Image.Resampling.BICUBIC)

    def __post_init__(self) -> None:
        for field in (
            "min_pixels",
            "max_pixels",
            "patch_size",
            "temporal_patch_size",
            "merge_size",
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CheckpointError(
                    f"{field}: expected a positive integer, got {value!r}", name="E_PREPROCESSOR"
                )
        if self.min_pixels > self.max_pixels:
            raise CheckpointError(
                f"min_pixels {self.min_pixels} exceeds max_pixels {self.max_pixels}",
                name="E_PREPROCESSOR",
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or 0.0 in self.image_std:
            raise CheckpointError(
                "image_mean and image_std: expected three numbers each, std not 0",
                name="E_PREPROCESSOR",
            )
        if self.resample not in list(Image.Resampling):
            raise CheckpointError(
                f"resample: unknown filter {self.resample}", name="E_PREPROCESSOR"
            )
        numbers = (*self.image_mean, *self.image_std, self.rescale_factor)
        if not all(math.isfinite(number) for number in numbers):
            raise CheckpointError(
                "image_mean, image_std or rescale_factor is not finite", name="E_PREPROCESSOR"
            )

    @property
    def factor(self) -> int:
        """Pixels along one side of a visual token; resized sizes are its multiples."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        """Values in one flattened patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @classmethod
    def from_dict(
        cls, raw: Mapping[str, Any], *, where: str = "preprocessor_config.json"
    ) -> ImageConfig:
        """The config of a parsed `preprocessor_config.json`, old keys or new.

        `min_pixels` and `max_pixels` win over `size.shortest_edge` and `size.longest_edge`
        (both count pixels of area). Raises CheckpointError naming the field.
        """
        try:
            return cls(**_fields(raw))
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}", name=error.name) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{where}: {error}", name="E_PREPROCESSOR") from None

    @classmethod
    def from_directory(cls, directory: Path) -> ImageConfig:
        """The config in `processor_config.json`'s part, or in `preprocessor_config.json`.

        The newer file wins, as it does in `transformers`.
        """
        newer = directory / "processor_config.json"
        if newer.exists() or newer.is_symlink():
            raw = read_json_object(newer, _MAX_CONFIG_BYTES).get("image_processor")
            if isinstance(raw, dict):
                return cls.from_dict(raw, where=f"{newer}: image_processor")
        path = directory / "preprocessor_config.json"
        return cls.from_dict(read_json_object(path, _MAX_CONFIG_BYTES), where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The `preprocessor_config.json` of this config, readable by `transformers`."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "rescale_factor": self.rescale_factor,
            "resample": self.resample,
        }


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """(height, width) in multiples of `factor`, area within the bounds, ratio about kept.

    Qwen2-VL's rule to the pixel. Area may pass `max_pixels` only for sides below one factor.
    Raises InputError E_IMAGE_ASPECT when one side is more than 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise InputError(
            f"image: {width} x {height} pixels, one side more than 200 times the other\ncrop it",
            name="E_IMAGE_ASPECT",
        )
    rows, cols = round(height / factor) * factor, round(width / factor) * factor
    if rows * cols > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        cols = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * cols < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        cols = math.ceil(width * grow / factor) * factor
    return rows, cols


def count_visual_tokens(height: int, width: int, config: ImageConfig) -> int:
    """Visual tokens of an upright image of this size in pixels, without touching pixels."""
    rows, cols = smart_resize(height, width, config.factor, config.min_pixels, config.max_pixels)
    return (rows // config.factor) * (cols // config.factor)


def preprocess(image: Image.Image, config: ImageConfig) -> ImageFeatures:
    """Patches of an RGB image.

    `pixel_values` (P, patch_dim) float32: patches of one merged token stand together (merge
    rows, then merge columns), tokens row-major; within a patch channel, time, row, column, the
    single frame repeated `temporal_patch_size` times.
    """
    assert image.mode == "RGB", f"preprocess: expected an RGB image, got {image.mode}"
    height, width = image.height, image.width
    rows, cols = smart_resize(height, width, config.factor, config.min_pixels, config.max_pixels)
    if (rows, cols) != (height, width):
        image = image.resize((cols, rows), resample=Image.Resampling(config.resample))
    pixels = patchify(np.asarray(image), config)
    grid = np.array([1, rows // config.patch_size, cols // config.patch_size], dtype=np.int64)
    return ImageFeatures(
        pixel_values=pixels,
        grid_thw=grid,
        source_size=(height, width),
        resized_size=(rows, cols),
        num_visual_tokens=len(pixels) // config.merge_size**2,
    )


def patchify(pixels: NDArray[np.uint8], config: ImageConfig) -> NDArray[np.float32]:
    """Normalised patches (P, patch_dim) of pixels (h, w, 3) uint8, h and w multiples of factor."""
    patch, merge, frames = config.patch_size, config.merge_size, config.temporal_patch_size
    rows, cols = pixels.shape[0] // config.factor, pixels.shape[1] // config.factor
    blocks = pixels.reshape(rows, merge, patch, cols, merge, patch, 3)
    ordered = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, patch * patch)
    out = np.empty((len(ordered), 3, frames, patch * patch), dtype=np.float32)
    mean, std = np.array(config.image_mean), np.array(config.image_std)
    scale = (config.rescale_factor / std).astype(np.float32)
    offset = (-mean / std).astype(np.float32)
    for channel in range(3):
        first = out[:, channel, 0]
        np.multiply(ordered[:, channel], scale[channel], out=first)
        first += offset[channel]
        out[:, channel, 1:] = first[:, None]
    return out.reshape(len(ordered), config.patch_dim)


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    kind = raw.get("image_processor_type")
    if kind is not None and not (isinstance(kind, str) and kind.startswith(_TYPES)):
        raise ValueError(f"image_processor_type {kind!r} is not supported, expected {_TYPES[0]!r}")
    for step in _STEPS:
        if raw.get(step) is False:
            raise ValueError(f"{step}: false is not supported")
    size = raw.get("size")
    if size is None:
        size = {}
    if not isinstance(size, Mapping):
        raise ValueError(f"size: expected an object, got {size!r}")
    spellings = {
        "min_pixels": (raw.get("min_pixels"), size.get("shortest_edge"), size.get("min_pixels")),
        "max_pixels": (raw.get("max_pixels"), size.get("longest_edge"), size.get("max_pixels")),
    }
    fields: dict[str, Any] = {}
    for name, values in spellings.items():
        given = [value for value in values if value is not None]
        if given:
            fields[name] = given[0]
    for name in ("patch_size", "temporal_patch_size", "merge_size", "resample"):
        if raw.get(name) is not None:
            fields[name] = raw[name]
    for name in ("image_mean", "image_std"):
        if raw.get(name) is not None:
            fields[name] = tuple(float(value) for value in raw[name])
    if raw.get("rescale_factor") is not None:
        fields["rescale_factor"] = float(raw["rescale_factor"])
    return fields
