"""Every damaged model directory is refused, by name, naming the file and the tensor."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from la_trt.config import ModelConfig
from la_trt.errors import CheckpointError
from la_trt.files.checkpoint import open_checkpoint
from la_trt.files.names import expected_tensors
from la_trt.files.tokenizer_check import check_tokenizer
from tests.files.samples import (
    edit_json,
    header_of,
    make_config,
    make_tensors,
    make_tokenizer,
    save_arrays,
    set_header,
    write_model,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FIRST_SHARD = "model-00001-of-00003.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
Q = "model.layers.1.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


def refused(path: Path, name: str, *parts: str) -> None:
    """Opening must fail with this E_NAME, exit code 4, and a message with all the parts."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert caught.value.name == name, message
    assert caught.value.exit_code == 4
    for part in parts:
        assert part in message
    assert 2 <= len(caught.value.render().splitlines()) <= 3


def tensors_of(change: Callable[[dict[str, Any]], Any], *, tied: bool = True) -> dict[str, Any]:
    tensors = make_tensors(make_config(tied=tied))
    change(tensors)
    return tensors


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.update(
        {name: value(tensors[name]) if callable(value) else value}
    )


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.pop(name)


TENSOR_CASES = {
    "missing_norm": (drop("model.norm.weight"), "E_MISSING_TENSOR", "model.norm.weight"),
    "missing_bias": (drop("visual.blocks.0.attn.qkv.bias"), "E_MISSING_TENSOR", "attn.qkv.bias"),
    "missing_embedding": (drop("model.embed_tokens.weight"), "E_MISSING_TENSOR", "embed_tokens"),
    "extra": (put("model.layers.2.mlp.up_proj.weight", np.ones((24, 16), np.float32)),
              "E_EXTRA_TENSOR", "model.layers.2.mlp.up_proj.weight"),
    "extra_unknown": (put("adapter.lora_A", np.ones(3, np.float32)), "E_EXTRA_TENSOR", "lora_A"),
    "like_inv_freq": (put("inv_freq_x", np.ones(3, np.float32)), "E_EXTRA_TENSOR", "inv_freq_x"),
    "transposed": (put(DOWN, lambda a: a.T), "E_TRANSPOSED_TENSOR", DOWN),
    "transposed_patch": (put("visual.patch_embed.proj.weight", lambda a: a.T),
                         "E_TRANSPOSED_TENSOR", "patch_embed"),
    "short": (put("model.norm.weight", lambda a: a[:-1]), "E_SHAPE", "model.norm.weight"),
    "flat": (put(Q, lambda a: a.reshape(-1)), "E_SHAPE", Q),
    "scalar": (put("visual.merger.ln_q.weight", np.array(1, np.float32)), "E_SHAPE", "ln_q"),
    "int8": (put(Q, lambda a: a.astype(np.int8)), "E_DTYPE", Q),
    "float64": (put(Q, lambda a: a.astype(np.float64)), "E_DTYPE", Q),
    "packed_int4": (put(Q, np.zeros((16, 8), np.uint8)), "E_DTYPE", Q),
    "nan": (put(Q, lambda a: np.where(np.arange(16) == 5, np.nan, a.astype(np.float32))),
            "E_NON_FINITE", Q),
    "inf": (put("visual.merger.mlp.2.bias", lambda a: a.astype(np.float32) + np.inf),
            "E_NON_FINITE", "visual.merger.mlp.2.bias"),
    "both_names": (put("model.language_model.norm.weight", np.ones(16, np.float32)),
                   "E_DUPLICATE_TENSOR", "model.language_model.norm.weight"),
    "tied_head_differs": (put("lm_head.weight", np.ones((40, 16), np.float32)),
                          "E_TIED_HEAD", "lm_head.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSOR_CASES)
def test_bad_tensors(model_dir: Path, case: str) -> None:
    change, name, part = TENSOR_CASES[case]
    save_arrays(model_dir / WEIGHTS, tensors_of(change))
    refused(model_dir, name, str(model_dir / WEIGHTS), part)


def test_untied_model_without_head(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", tied=False)
    save_arrays(path / WEIGHTS, tensors_of(drop("lm_head.weight"), tied=False))
    refused(path, "E_MISSING_TENSOR", WEIGHTS, "lm_head.weight")


def test_tied_head_differs_in_one_bit(model_dir: Path) -> None:
    tensors = make_tensors(make_config())
    head = tensors["model.embed_tokens.weight"].copy()
    head.view(np.uint16)[39, 15] ^= 1
    save_arrays(model_dir / WEIGHTS, tensors | {"lm_head.weight": head})
    refused(model_dir, "E_TIED_HEAD", WEIGHTS, "lm_head.weight", "tie_word_embeddings")


def spoil_offsets(path: Path) -> None:
    header = header_of(path / WEIGHTS)
    header[Q]["data_offsets"] = [offset - 2 for offset in header[Q]["data_offsets"]]
    set_header(path / WEIGHTS, header)


def spoil_dtype(path: Path) -> None:
    header = header_of(path / WEIGHTS)
    header[Q]["dtype"] = "F8_E5M2"
    set_header(path / WEIGHTS, header)


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / name, (path / name).stat().st_size - size)


def write(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda path: (path / name).write_bytes(data)


def be_a_bundle(path: Path) -> None:
    (path / "config.json").rename(path / "bundle.json")


def remove(name: str) -> Callable[[Path], Any]:
    return lambda path: (path / name).unlink()


def config(**fields: Any) -> Callable[[Path], None]:
    return lambda path: edit_json(path / "config.json", lambda raw: raw.update(fields))


def link_out(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        outside = path.parent / "outside"
        (path / name).rename(outside)
        (path / name).symlink_to(outside)

    return change


def pickle_only(path: Path) -> None:
    (path / WEIGHTS).rename(path / "pytorch_model.bin")


def fifo(path: Path) -> None:
    (path / WEIGHTS).unlink()
    os.mkfifo(path / WEIGHTS)


def directory(path: Path) -> None:
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).mkdir()


DIRECTORY_CASES: dict[str, tuple[Callable[[Path], Any], str, tuple[str, ...]]] = {
    "offsets": (spoil_offsets, "E_OFFSETS", (WEIGHTS, "tensor")),
    "f8": (spoil_dtype, "E_DTYPE", (WEIGHTS, Q)),
    "truncated": (cut(WEIGHTS, 1), "E_TRUNCATED", (WEIGHTS, "tensor")),
    "lfs_weights": (write(WEIGHTS, LFS), "E_LFS_POINTER", (WEIGHTS, "git lfs pull")),
    "lfs_tokenizer": (write("tokenizer.json", LFS), "E_LFS_POINTER", ("tokenizer.json",)),
    "lfs_config": (write("config.json", LFS), "E_LFS_POINTER", ("config.json",)),
    "pickle": (pickle_only, "E_PICKLE", ("pytorch_model.bin", "convert to safetensors")),
    "pickle_renamed": (write(WEIGHTS, b"\x80\x02}q\x00." * 9), "E_PICKLE", (WEIGHTS, "convert")),
    "empty_weights": (write(WEIGHTS, b""), "E_TRUNCATED", (WEIGHTS,)),
    "html": (write(WEIGHTS, b"<html>404</html>"), "E_HEADER_SIZE", (WEIGHTS,)),
    "no_weights": (remove(WEIGHTS), "E_MISSING_FILE", (WEIGHTS, INDEX)),
    "no_config": (remove("config.json"), "E_MISSING_FILE", ("config.json",)),
    "no_tokenizer": (remove("tokenizer.json"), "E_MISSING_FILE", ("tokenizer.json",)),
    "fifo": (fifo, "E_MISSING_FILE", (WEIGHTS, "not a regular file")),
    "directory": (directory, "E_MISSING_FILE", (WEIGHTS, "not a regular file")),
    "linked_weights": (link_out(WEIGHTS), "E_LINK", (WEIGHTS,)),
    "linked_tokenizer": (link_out("tokenizer.json"), "E_LINK", ("tokenizer.json",)),
    "linked_config": (link_out("config.json"), "E_LINK", ("config.json",)),
    "config_not_json": (write("config.json", b"{"), "E_CONFIG", ("config.json",)),
    "config_list": (write("config.json", b"[]"), "E_CONFIG", ("config.json",)),
    "config_deep": (write("config.json", b'{"a":' * 9000), "E_CONFIG", ("config.json",)),
    "config_latin": (write("config.json", b'{"a":"\xe9"}'), "E_CONFIG", ("config.json",)),
    "config_twice": (write("config.json", b'{"a":1,"a":2}'), "E_CONFIG", ("'a'",)),
    "other_model": (config(model_type="qwen2_vl"), "E_MODEL_TYPE", ("config.json", "qwen2_vl")),
    "more_layers": (config(num_hidden_layers=3), "E_MISSING_TENSOR", (WEIGHTS, "model.layers.2")),
    "fewer_layers": (config(num_hidden_layers=1), "E_EXTRA_TENSOR", (WEIGHTS, "model.layers.1")),
    "other_width": (config(intermediate_size=25), "E_SHAPE", (WEIGHTS, "mlp.gate_proj")),
    "vocab_larger": (config(vocab_size=41), "E_SHAPE", (WEIGHTS, "embed_tokens")),
    "vocab_smaller": (config(vocab_size=33), "E_VOCAB", ("tokenizer.json", "vision_end", "33")),
    "zero_heads": (config(num_attention_heads=0), "E_CONFIG", ("config.json", "heads is 0")),
    "many_layers": (config(num_hidden_layers=1 << 30), "E_CONFIG", ("config.json", "layers")),
    "zero_theta": (config(rope_theta=-1.0), "E_CONFIG", ("config.json", "rope_theta")),
    "no_vision": (config(vision_config=None), "E_CONFIG", ("config.json",)),
    "sections": (config(rope_scaling={"type": "mrope", "mrope_section": [1, 1, 1]}), "E_CONFIG",
                 ("config.json", "mrope_section")),
    "yarn": (config(rope_scaling={"type": "yarn"}), "E_CONFIG", ("config.json", "yarn")),
    "image_id": (config(image_token_id=31), "E_VOCAB", ("tokenizer.json", "image_token_id")),
    "tokenizer_empty": (write("tokenizer.json", b"{}"), "E_TOKENIZER", ("tokenizer.json",)),
    "tokenizer_bad": (write("tokenizer.json", b"\0\1"), "E_TOKENIZER", ("tokenizer.json",)),
    "tokenizer_ids": (write("tokenizer.json", b'{"model":{"vocab":{"a":-1}}}'), "E_TOKENIZER",
                      ("tokenizer.json", "'a'")),
    "tokenizer_foreign": (write("tokenizer.json", b'{"model":{"vocab":{"a":0}}}'), "E_VOCAB",
                          ("tokenizer.json", "<|image_pad|>")),
    "a_bundle": (be_a_bundle, "E_MISSING_FILE", ("a bundle, not a checkpoint", "--engine")),
    "two_forms": (write(INDEX, b"{}"), "E_INDEX", (INDEX, WEIGHTS)),
}  # fmt: skip


def slow_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").rename(path / "vocab.json")


def packed(path: Path) -> None:
    tensors = tensors_of(drop(Q)) | {Q + "_packed": np.ones(3, np.int32)}
    save_arrays(path / WEIGHTS, tensors)
    config(quantization_config={"quant_method": "compressed-tensors"})(path)


DIRECTORY_CASES |= {
    "slow_tokenizer": (slow_tokenizer, "E_MISSING_FILE", ("tokenizer.json", "save_pretrained")),
    "quantised": (packed, "E_MISSING_TENSOR", (WEIGHTS, Q, "give the unquantised checkpoint")),
    "f8_advice": (spoil_dtype, "E_DTYPE", (WEIGHTS, Q, "give the unquantised checkpoint")),
}


@pytest.mark.parametrize("case", DIRECTORY_CASES)
def test_bad_directories(model_dir: Path, case: str) -> None:
    change, name, parts = DIRECTORY_CASES[case]
    change(model_dir)
    refused(model_dir, name, *parts)


def move(tensor: str, to: object) -> Callable[[Path], None]:
    return lambda path: edit_json(path / INDEX, lambda raw: raw["weight_map"].update({tensor: to}))


def unlist(path: Path) -> None:
    edit_json(path / INDEX, lambda raw: raw["weight_map"].pop(Q))


def shard_of(path: Path, tensor: str) -> str:
    return str(json.loads((path / INDEX).read_text())["weight_map"][tensor])


INDEX_CASES: dict[str, tuple[Callable[[Path], Any], str, tuple[str, ...]]] = {
    "missing_shard": (remove(FIRST_SHARD), "E_MISSING_FILE", (FIRST_SHARD,)),
    "truncated_shard": (cut(FIRST_SHARD, 7), "E_TRUNCATED", (FIRST_SHARD, "tensor")),
    "lfs_shard": (write(FIRST_SHARD, LFS), "E_LFS_POINTER", (FIRST_SHARD,)),
    "linked_shard": (link_out(FIRST_SHARD), "E_LINK", (FIRST_SHARD,)),
    "linked_index": (link_out(INDEX), "E_LINK", (INDEX,)),
    "lfs_index": (write(INDEX, LFS), "E_LFS_POINTER", (INDEX,)),
    "index_not_json": (write(INDEX, b"["), "E_INDEX", (INDEX,)),
    "index_without_map": (write(INDEX, b'{"metadata":{}}'), "E_INDEX", (INDEX, "weight_map")),
    "index_empty_map": (write(INDEX, b'{"weight_map":{}}'), "E_INDEX", (INDEX, "weight_map")),
    "index_list": (write(INDEX, b"[]"), "E_INDEX", (INDEX,)),
    "parent": (move(Q, "../model-00001-of-00003.safetensors"), "E_ESCAPING_NAME", (INDEX, Q)),
    "absolute": (move(Q, "/etc/x.safetensors"), "E_ESCAPING_NAME", (INDEX, Q, "/etc/x")),
    "subdirectory": (move(Q, "a/b.safetensors"), "E_ESCAPING_NAME", (INDEX, Q)),
    "nul": (move(Q, "a\0.safetensors"), "E_ESCAPING_NAME", (INDEX, Q)),
    "newline": (move(Q, "a.safetensors\n"), "E_ESCAPING_NAME", (INDEX, Q)),
    "hidden": (move(Q, ".x.safetensors"), "E_ESCAPING_NAME", (INDEX, Q)),
    "number": (move(Q, 3), "E_ESCAPING_NAME", (INDEX, Q)),
    "none": (move(Q, None), "E_ESCAPING_NAME", (INDEX, Q)),
    "bin_shard": (move(Q, "pytorch_model-1.bin"), "E_PICKLE", (INDEX, Q, "convert")),
    "listed_elsewhere": (move("nothing.weight", FIRST_SHARD), "E_MISSING_TENSOR",
                         (FIRST_SHARD, "nothing.weight")),
    "not_listed": (unlist, "E_EXTRA_TENSOR", (Q,)),
}  # fmt: skip


@pytest.mark.parametrize("case", INDEX_CASES)
def test_bad_sharded_directories(sharded_dir: Path, case: str) -> None:
    change, name, parts = INDEX_CASES[case]
    change(sharded_dir)
    refused(sharded_dir, name, *parts)


def test_non_finite_weight_in_a_shard_names_that_shard(sharded_dir: Path) -> None:
    shard = sharded_dir / shard_of(sharded_dir, Q)
    data = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little") + header_of(shard)[Q]["data_offsets"][0]
    data[start : start + 2] = b"\xc0\x7f"
    shard.write_bytes(data)
    refused(sharded_dir, "E_NON_FINITE", shard.name, Q, "[0, 0]")


NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**400,
    1.5,
    1e308,
    "",
    "16",
    [],
    [1],
    {},
]
NASTY += [[None], {"a": 1}, [[]], "\ud800", [1e308] * 3, ["x", "y", "z"], [2, 1, 1], "default"]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value))
    found: list[tuple[Any, Any]] = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def count_refused(raw: dict[str, Any], read: Callable[[Any], Any]) -> int:
    """How often `read` refuses, each value replaced by each nasty one; other errors pass."""
    num_refused = 0
    whole = json.dumps(raw)
    for number in range(len(places(raw))):
        for nasty in NASTY:
            changed = json.loads(whole)
            container, key = places(changed)[number]
            container[key] = nasty
            try:
                read(changed)
            except CheckpointError as error:
                num_refused += len(error.render()) < 1000
    return num_refused


def test_nasty_values_in_a_config_are_read_or_refused() -> None:
    raw = make_config().to_dict()
    read = lambda changed: expected_tensors(ModelConfig.from_dict(changed))  # noqa: E731
    assert count_refused(raw, read) > 400


def test_nasty_values_in_a_tokenizer_are_read_or_refused() -> None:
    def read(changed: Any) -> None:
        data = json.dumps(changed).encode()
        check_tokenizer(Path("tokenizer.json"), data, make_config())

    assert count_refused(make_tokenizer(), read) > 400


@pytest.mark.parametrize("shards", [0, 3])
def test_random_damage_opens_or_is_refused(tmp_path: Path, shards: int) -> None:
    """150 directories with changed, lost or added bytes: CheckpointError, or it still opens."""
    path = write_model(tmp_path / "m", shards=shards)
    names = ["config.json", "tokenizer.json", INDEX if shards else WEIGHTS]
    whole = {name: (path / name).read_bytes() for name in names}
    rng = random.Random(shards)
    num_refused = 0
    for _ in range(150):
        name = rng.choice(names)
        data = bytearray(whole[name])
        position = rng.randrange(min(len(data), 8000))
        kind = rng.randrange(3)
        if kind == 0:
            data[position] = rng.choice(b'0127"{}[],:.-e' + bytes([0, 255]))
        elif kind == 1:
            del data[position : position + rng.choice([1, 1, 8])]
        else:
            data.insert(position, rng.choice(b'0129"{}[],:-'))
        (path / name).write_bytes(data)
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            num_refused += str(path) in error.render()
        (path / name).write_bytes(whole[name])
    assert num_refused > 75
    open_checkpoint(path)


def test_paths_that_are_no_directories(model_dir: Path, tmp_path: Path) -> None:
    refused(tmp_path / "absent", "E_MISSING_FILE", "absent", "config.json")
    refused(model_dir / WEIGHTS, "E_MISSING_FILE", WEIGHTS)
    shutil.rmtree(model_dir)
    model_dir.mkdir()
    refused(model_dir, "E_MISSING_FILE", "config.json")


def test_linked_tokenizer_file_is_refused_when_listed(model_dir: Path) -> None:
    checkpoint = open_checkpoint(model_dir)
    (model_dir / "generation_config.json").unlink()
    (model_dir / "generation_config.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="generation_config") as caught:
        checkpoint.tokenizer_files()
    assert caught.value.name == "E_LINK"
