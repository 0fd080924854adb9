"""Patches equal to `transformers`' image processor; its configuration files read strictly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as reference_smart_resize,
)

from la_trt.errors import CheckpointError, InputError
from la_trt.processor.features import (
    ImageConfig,
    count_visual_tokens,
    patchify,
    preprocess,
    smart_resize,
)
from la_trt.processor.image import load_image

MODES = ("RGB", "L", "RGBA", "P", "CMYK", "1", "I;16", "LA")
UGLY = [(1, 1), (1, 19), (19, 1), (111, 19), (19, 111), (1, 200), (200, 1), (28, 28), (27, 29)]


def random_image(rng: np.random.Generator, mode: str, height: int, width: int) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    if mode in ("RGBA", "LA"):
        values = rng.integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
        return Image.fromarray(values)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    while True:
        height, width = (int(v) for v in np.exp(rng.uniform(0, np.log(500), 2)))
        if max(height, width) <= 200 * min(height, width):
            return height, width


@pytest.mark.parametrize("mode", MODES)
def test_patches_equal_transformers(mode: str, reference: Any) -> None:
    """25 sizes in each of 8 modes: the grid exactly, values within 1e-5."""
    rng = np.random.default_rng(MODES.index(mode))
    config = ImageConfig(max_pixels=28 * 28 * 64)
    for height, width in [*UGLY, *(random_size(rng) for _ in range(25 - len(UGLY)))]:
        image = random_image(rng, mode, height, width)
        given = image
        if mode == "I;16":  # the reference clips 16 bits at 255, we scale them
            given = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        expected = reference.image_processor(given, return_tensors="np")
        found = preprocess(load_image(image), config)
        np.testing.assert_array_equal(found.grid_thw, expected["image_grid_thw"][0])
        assert found.pixel_values.dtype == np.float32
        np.testing.assert_allclose(
            found.pixel_values, expected["pixel_values"], rtol=0, atol=1e-5, err_msg=f"{image}"
        )
        assert found.source_size == (height, width)
        assert found.num_visual_tokens == int(np.prod(found.grid_thw)) // 4
        assert found.num_visual_tokens == count_visual_tokens(height, width, config)


@pytest.mark.parametrize(
    ("patch", "merge", "frames"), [(14, 2, 2), (4, 2, 2), (7, 1, 1), (6, 3, 3)]
)
def test_other_patch_sizes(patch: int, merge: int, frames: int) -> None:
    config = ImageConfig(
        patch_size=patch, merge_size=merge, temporal_patch_size=frames, max_pixels=20_000
    )
    reference = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=frames,
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        image_mean=config.image_mean,
        image_std=config.image_std,
    )
    rng = np.random.default_rng(patch)
    for height, width in ((19, 111), (111, 111), (300, 200)):
        image = random_image(rng, "RGB", height, width)
        expected = reference(image, return_tensors="np")
        found = preprocess(image, config)
        np.testing.assert_array_equal(found.grid_thw, expected["image_grid_thw"][0])
        np.testing.assert_allclose(found.pixel_values, expected["pixel_values"], atol=1e-5)


def test_patch_order_by_hand() -> None:
    """Merge blocks row-major; inside a block rows, then columns; inside a patch c, t, y, x."""
    config = ImageConfig(
        patch_size=1, min_pixels=1, image_mean=(0, 0, 0), image_std=(1, 1, 1), rescale_factor=1.0
    )
    red = np.arange(8, dtype=np.uint8).reshape(2, 4)
    pixels = np.stack([red, red + 10, red + 20], axis=-1)
    patches = patchify(pixels, config)
    assert patches.shape == (8, 6)
    assert patches[:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert patches[1].tolist() == [1, 1, 11, 11, 21, 21]


def test_strided_pixels() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (56, 112, 3), dtype=np.uint8)
    config = ImageConfig()
    np.testing.assert_array_equal(
        patchify(pixels[:, ::2], config), patchify(pixels[:, ::2].copy(), config)
    )


def test_smart_resize_equals_transformers() -> None:
    rng = np.random.default_rng(11)
    for _ in range(3000):
        height, width = random_size(rng)
        factor = int(rng.choice([1, 8, 14, 28, 42]))
        low = int(rng.integers(1, 20_000))
        high = low + int(rng.integers(0, 200_000))
        expected = reference_smart_resize(height, width, factor, low, high)
        assert smart_resize(height, width, factor, low, high) == expected


@pytest.mark.parametrize(("height", "width"), [(1, 201), (201, 1), (10, 2001)])
def test_smart_resize_refuses_slivers(height: int, width: int) -> None:
    with pytest.raises(InputError) as caught:
        smart_resize(height, width, 28, 3136, 10**6)
    assert caught.value.name == "E_IMAGE_ASPECT"


def write(directory: Path, name: str, raw: object) -> None:
    (directory / name).write_text(json.dumps(raw))


RELEASED = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


@pytest.mark.parametrize(
    ("raw", "low", "high"),
    [
        (RELEASED, 3136, 12845056),
        ({}, 3136, 12845056),
        ({"size": {"shortest_edge": 100, "longest_edge": 2000}}, 100, 2000),
        ({"size": {"min_pixels": 100, "max_pixels": 2000}}, 100, 2000),
        ({"min_pixels": 50, "size": {"shortest_edge": 100, "longest_edge": 2000}}, 50, 2000),
        ({"image_processor_type": "Qwen2VLImageProcessorFast"}, 3136, 12845056),
    ],
)
def test_both_spellings_of_the_bounds(
    raw: dict[str, Any], low: int, high: int, tmp_path: Path
) -> None:
    write(tmp_path, "preprocessor_config.json", raw)
    config = ImageConfig.from_directory(tmp_path)
    assert (config.min_pixels, config.max_pixels) == (low, high)


def test_config_round_trip_and_reference_reads_it(tmp_path: Path) -> None:
    config = ImageConfig(min_pixels=784, max_pixels=7840, patch_size=7, image_mean=(0.5, 0.4, 0.3))
    write(tmp_path, "preprocessor_config.json", config.to_dict())
    assert ImageConfig.from_directory(tmp_path) == config
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == (784, 7840)
    assert (theirs.patch_size, tuple(theirs.image_mean)) == (7, (0.5, 0.4, 0.3))


def test_what_the_reference_writes_is_read(tmp_path: Path) -> None:
    Qwen2VLImageProcessorPil(
        patch_size=7, size={"shortest_edge": 49, "longest_edge": 980}
    ).save_pretrained(tmp_path)
    config = ImageConfig.from_directory(tmp_path)
    assert (config.patch_size, config.min_pixels, config.max_pixels) == (7, 49, 980)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_file_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    model, outside = tmp_path / "m", tmp_path / "outside"
    model.mkdir()
    outside.write_text(json.dumps({**RELEASED, "image_processor": RELEASED}))
    (model / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=name) as caught:
        ImageConfig.from_directory(model)
    assert caught.value.name == "E_LINK"
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        ImageConfig.from_directory(model)


def test_newer_file_wins_over_the_older_as_in_transformers(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", RELEASED)
    newer = {"image_processor": {**RELEASED, "patch_size": 7}}
    write(tmp_path, "processor_config.json", newer)
    assert ImageConfig.from_directory(tmp_path).patch_size == 7
    assert Qwen2VLImageProcessorPil.from_pretrained(tmp_path).patch_size == 7
    write(tmp_path, "processor_config.json", {"processor_class": "Qwen2_5_VLProcessor"})
    assert ImageConfig.from_directory(tmp_path).patch_size == 14


def test_newer_file_with_a_part_for_images(tmp_path: Path) -> None:
    write(tmp_path, "processor_config.json", {"image_processor": {**RELEASED, "patch_size": 7}})
    assert ImageConfig.from_directory(tmp_path).patch_size == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch_size": 0},
        {"patch_size": "14"},
        {"patch_size": 14.0},
        {"merge_size": True},
        {"temporal_patch_size": -1},
        {"min_pixels": 10, "max_pixels": 5},
        {"min_pixels": "x"},
        {"size": 5},
        {"size": [1, 2]},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": 0.5},
        {"image_mean": ["a", "b", "c"]},
        {"image_std": [0.5, 0.5, 0.0]},
        {"image_std": [0.5, 0.5, float("nan")]},
        {"rescale_factor": float("inf")},
        {"resample": 17},
        {"resample": [3]},
        {"do_resize": False},
        {"do_normalize": False},
        {"image_processor_type": "CLIPImageProcessor"},
        {"image_processor_type": 3},
    ],
)
def test_wrong_config_is_named(wrong: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", {**RELEASED, **wrong})
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json") as caught:
        ImageConfig.from_directory(tmp_path)
    assert caught.value.name == "E_PREPROCESSOR"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        ImageConfig.from_directory(tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json") as caught:
        ImageConfig.from_directory(tmp_path)
    assert caught.value.name == "E_MISSING_FILE"
