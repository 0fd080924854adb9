"""What is decided before TensorRT is asked: options, profiles, records, errors, the table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from build_engines.tensorrt.bundle import TensorRTOptions, build_tensorrt
from build_engines.tensorrt.profiles import decoder_profiles, most_windows, vision_profiles
from la_trt.assets import TINY_CHECKPOINT
from la_trt.bindings import Binding, decoder_inputs, decoder_outputs, place, shape_of
from la_trt.cli.build import command
from la_trt.cli.source import Source
from la_trt.config import ModelConfig
from la_trt.engines import tensorrt_library
from la_trt.engines.tensorrt_library import TensorRT, load_tensorrt, plugin_library
from la_trt.engines.tensorrt_record import RECORD, EngineFile, EngineRecord, Profile, read_record
from la_trt.engines.vision_layout import vision_layout
from la_trt.errors import BundleError, MachineError, UsageError
from la_trt.files.bundle import Bundle, BundleLimits
from la_trt.files.manifest import FileEntry, Manifest
from tests.model.configs import random_config


@pytest.mark.parametrize("seed", range(3))
def test_places_do_not_overlap_and_hold_their_shapes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = random_config(seed)
    letters = {letter: int(rng.integers(0, 40)) for letter in "BSMNCR"}
    for dtype in ("float32", "float16", "bfloat16"):
        table = (*decoder_inputs(config, dtype=dtype), *decoder_outputs(config, dtype=dtype))
        places, total = place(table, letters)
        assert list(places) == [b.name for b in table]
        end = 0
        for found in places.values():
            assert found.offset % 256 == 0 and found.offset >= end
            size = 2 if found.binding.dtype in ("float16", "bfloat16") else 4
            size = 8 if found.binding.dtype == "int64" else size
            assert found.num_bytes == size * math.prod(found.shape)
            end = found.offset + found.num_bytes
        assert total >= end
    assert shape_of(Binding("x", "int64", ("B", 3, "S")), {"B": 2, "S": 0}) == (2, 3, 0)


def test_most_windows_is_a_bound_that_is_reached() -> None:
    for side in (1, 2, 4):
        for tokens in (1, 5, 17, 64):
            counts = [
                -(-h // side) * -(-w // side)
                for h in range(1, tokens + 1)
                for w in range(1, tokens // h + 1)
            ]
            assert most_windows(tokens, side) == max(counts)


@pytest.mark.parametrize("seed", range(6))
def test_every_image_within_the_limit_fits_the_vision_profile(seed: int) -> None:
    config = random_config(seed)
    v = config.vision
    merge, max_pixels = v.spatial_merge_size, 60 * (v.patch_size * v.spatial_merge_size) ** 2
    (profile,) = vision_profiles(config, max_pixels=max_pixels)
    for rows in (1, 2, 5, 7, 60):
        for cols in {1, 60 // rows}:
            layout = vision_layout(np.array([1, rows * merge, cols * merge]), v)
            num_patches, half = len(layout.patch_order), v.head_dim // 2
            windows = (len(layout.window_sizes), int(layout.window_sizes.max()))
            shapes = {
                "pixel_values": (1, num_patches, v.patch_dim),
                "cos": (1, num_patches, half),
                "sin": (1, num_patches, half),
                "window_patch": windows,
                "window_length": windows[:1],
                "patch_slot": (num_patches,),
            }
            assert profile.admits(shapes), shapes


def test_profiles_of_the_decoder() -> None:
    """One token of many sequences, or a chunk of one; a single profile where weights are codes."""
    config = random_config(0)
    for quant, names in (
        ("none", ["decode", "prefill"]),
        ("fp8", ["any"]),
        ("int8", ["any"]),
        ("int4", ["any"]),
    ):
        profiles = decoder_profiles(config, max_batch=4, max_len=300, chunk=64, quant=quant)
        assert [p.name for p in profiles] == names
        for batch, length, fits in ((4, 1, True), (1, 64, True), (1, 65, False), (5, 1, False)):
            letters = {"B": batch, "S": length, "M": 9, "N": 0, "C": 300, "R": 0}
            shapes = {b.name: shape_of(b, letters) for b in decoder_inputs(config)}
            assert any(p.admits(shapes) for p in profiles) == fits


RECORDED = EngineRecord(
    runtime="tensorrt_rtx",
    version="1.7.1.116",
    plugin_sha256="ab" * 32,
    dtype="bfloat16",
    kv_dtype="int8",
    quant="int4",
    max_batch=2,
    prefill_chunk=64,
    engines=(
        EngineFile(
            graph="decoder",
            sm=89,
            path="tensorrt/sm89/decoder.engine",
            profiles=(Profile(name="any", shapes={"input_ids": ((1, 1), (1, 1), (2, 64))}),),
        ),
    ),
)


def recorded_bundle(path: Path, data: bytes) -> Bundle:
    (path / "tensorrt" / "sm89").mkdir(parents=True)
    (path / RECORD).write_bytes(data)
    (path / "tensorrt/sm89/decoder.engine").write_bytes(b"")
    names = (RECORD, "tensorrt/sm89/decoder.engine")
    manifest = Manifest(
        la_trt_version="test",
        config=random_config(0),
        tags={},
        limits=BundleLimits(max_model_len=64, min_pixels=1, max_pixels=100),
        quant="int4",
        request={},
        files=tuple(FileEntry(name, 1, "") for name in names),
    )
    return Bundle(path, manifest)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    bundle = recorded_bundle(tmp_path, RECORDED.render())
    record = read_record(bundle)
    assert record == RECORDED
    assert record.find("decoder", 89, where=tmp_path).path == "tensorrt/sm89/decoder.engine"
    with pytest.raises(
        BundleError, match=r"--sm 120 --dtype bf16 --quant int4 --kv-dtype int8"
    ) as refused:
        record.find("decoder", 120, where=tmp_path)
    assert refused.value.name == "E_SM"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"extra": 1},
        {"version": 3},
        {"max_batch": 0},
        {"engines": [{"graph": "decoder"}]},
        {"engines": [{"graph": "other", "sm": 89, "path": "x", "profiles": []}]},
        {"engines": 7},
    ],
)
def test_a_damaged_record_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    raw = json.loads(RECORDED.render()) | change
    with pytest.raises(BundleError) as refused:
        read_record(recorded_bundle(tmp_path, json.dumps(raw).encode()))
    assert refused.value.name == "E_ENGINE_RECORD"


def test_a_bundle_without_engines_says_how_to_build_them(tmp_path: Path) -> None:
    bundle = recorded_bundle(tmp_path, RECORDED.render())
    bundle = replace(bundle, manifest=replace(bundle.manifest, files=()))
    with pytest.raises(BundleError, match="--backend tensorrt --sm"):
        read_record(bundle)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"sms": (70,)}, "kernels are compiled for"),
        ({"sms": (75,), "quant": "int4"}, "int4 needs SM 80 or newer, got 75\nuse int8"),
        ({"sms": (75, 80), "dtype": "bf16"}, "bf16 needs SM 80 or newer, got 75"),
        ({"sms": (89,), "kv_dtype": "int4"}, "kv_dtype"),
        ({"sms": ()}, "one or more"),
        ({"sms": (89, 89)}, "each once"),
        ({"sms": (86, 89), "quant": "fp8"}, "fp8 needs SM 89"),
        ({"sms": (89,), "dtype": "fp32"}, "dtype"),
        ({"sms": (89,), "quant": "int3"}, "quant"),
        ({"sms": (89,), "block_size": 48}, "block_size"),
        ({"sms": (89,), "max_batch": 0}, "max_batch"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        TensorRTOptions(**options)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugin library; a file that is none; no TensorRT at all; a wrong GPU for this one."""
    with pytest.raises(MachineError, match="make plugins") as refused:
        plugin_library(tmp_path / "absent.so")
    assert refused.value.name == "E_PLUGIN"
    monkeypatch.setattr(tensorrt_library, "RUNTIMES", {"tensorrt": ("no_such_module",)})
    load_tensorrt.cache_clear()
    with pytest.raises(MachineError, match=r"install la-trt\[tensorrt\]") as refused:
        load_tensorrt()
    assert refused.value.name == "E_NO_TENSORRT"
    load_tensorrt.cache_clear()

    kinds = SimpleNamespace(__members__={"NONE": 0, "CURRENT": 1, "SM80": 2, "SM89": 3})
    fake = TensorRT("tensorrt_rtx", SimpleNamespace(__version__="1", ComputeCapability=kinds))
    assert fake.sm_targets() == (80, 89)
    monkeypatch.setattr("build_engines.tensorrt.bundle.load_tensorrt", lambda name: fake)
    with pytest.raises(MachineError, match="no engines for SM 90, only for 80, 89") as refused:
        build_tensorrt(TINY_CHECKPOINT, tmp_path / "b", TensorRTOptions(sms=(90,)))
    assert refused.value.name == "E_SM"
    assert not (tmp_path / "b").exists()


def test_the_command_refuses_options_that_have_no_effect(tmp_path: Path) -> None:
    paths = ["--ckpt", str(tmp_path), "--output", str(tmp_path / "b")]
    for flags, what in (
        (["--sm", "89"], "--sm is for TensorRT"),
        (["--dtype", "bf16"], "--dtype is for TensorRT"),
        (["--kv-dtype", "int8"], "--kv-dtype is for TensorRT"),
        (["--max-batch", "2"], "--max-batch is for TensorRT"),
        (["--backend", "tensorrt"], "give --sm"),
        (["--backend", "tensorrt", "--sm", "70"], "kernels are compiled"),
    ):
        result = CliRunner().invoke(command, [*paths, *flags])
        assert isinstance(result.exception, UsageError), (flags, result.output)
        assert what in str(result.exception)


def test_the_backend_needs_a_bundle_and_no_threads(tmp_path: Path) -> None:
    for given, what in (
        ({}, "--engine DIR"),
        ({"ckpt": tmp_path}, "is a checkpoint"),
        ({"engine": tmp_path, "threads": 2}, "--threads"),
    ):
        with pytest.raises(UsageError, match=what):
            Source(backend="tensorrt", **given)  # type: ignore[arg-type]


def test_head_dimensions_without_a_kernel_are_refused() -> None:
    from build_engines.tensorrt.bundle import _check_model

    config: ModelConfig = random_config(0)
    assert config.text.head_dim not in (64, 80, 128)
    with pytest.raises(Exception, match="head_dim"):
        _check_model(config, TensorRTOptions(sms=(89,)))
