"""Good model directories open in every published form; their tensors are what was saved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from la_trt.config import ModelConfig
from la_trt.errors import CheckpointError
from la_trt.files.checkpoint import open_checkpoint
from la_trt.files.names import canonical_name, expected_tensors
from tests.files.samples import edit_json, make_config, make_tensors, save_arrays, write_model

RELEASED: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_token_id": 151654,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "max_position_embeddings": 128000,
    "use_sliding_window": False,
    "sliding_window": 32768,
}
RELEASED_VISION = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}
SIZES = {
    "3B": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}


def released_config(size: str) -> dict[str, Any]:
    vision = {**RELEASED_VISION, "out_hidden_size": SIZES[size]["hidden_size"]}
    return {**RELEASED, **SIZES[size], "vision_config": vision}


@pytest.mark.parametrize(
    ("size", "num_tensors", "total_size"), [("3B", 824, 7509245952), ("7B", 729, 16584333312)]
)
def test_expected_tensors_have_the_released_total_size(
    size: str, num_tensors: int, total_size: int
) -> None:
    """`total_size` as the released `model.safetensors.index.json` states it, in bfloat16."""
    tensors = expected_tensors(ModelConfig.from_dict(released_config(size)))
    assert len(tensors) == num_tensors
    assert 2 * sum(math.prod(shape) for shape in tensors.values()) == total_size


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_expected_tensors_are_those_of_transformers(size: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    raw = released_config(size)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**raw))
    theirs = {canonical_name(name): tuple(p.shape) for name, p in model.state_dict().items()}
    if raw["tie_word_embeddings"]:
        theirs.pop("lm_head.weight", None)
    assert theirs == expected_tensors(ModelConfig.from_dict(raw))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"])
def test_directories_saved_by_transformers_open(
    tmp_path: Path, tied: bool, max_shard_size: str
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    raw = released_config("3B") | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 400,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": tied,
    }
    ids = {"image_token_id": 390, "video_token_id": 391, "eos_token_id": 392}
    ids |= {"vision_start_token_id": 393, "vision_end_token_id": 394, "bos_token_id": 395}
    small = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    raw |= ids | {"vision_config": {**RELEASED_VISION, **small, "out_hidden_size": 64}}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**raw)).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "1GB")
    checkpoint = open_checkpoint(tmp_path, require_tokenizer=False)
    assert checkpoint.config.text.tie_word_embeddings == tied
    state = {canonical_name(name): tensor for name, tensor in model.state_dict().items()}
    for name in checkpoint.names():
        theirs = state[name].view(torch.uint16).numpy()
        assert checkpoint.dtype(name) == ml_dtypes.bfloat16
        np.testing.assert_array_equal(checkpoint.tensor(name).view(np.uint16), theirs)


@pytest.mark.parametrize("shards", [0, 1, 3])
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_every_form_opens_to_the_same_tensors(
    tmp_path: Path, shards: int, newer: bool, tied: bool
) -> None:
    path = write_model(tmp_path / "m", tied=tied, shards=shards, newer=newer)
    checkpoint = open_checkpoint(str(path))
    expected = make_tensors(make_config(tied=tied))
    assert checkpoint.path == path
    assert checkpoint.names() == list(expected)
    assert checkpoint.num_bytes() == sum(array.nbytes for array in expected.values())
    for name, array in expected.items():
        assert checkpoint.shape(name) == array.shape
        assert checkpoint.tensor(name).tobytes() == array.tobytes()
    assert set(checkpoint.tokenizer_files()) == {"tokenizer.json", "generation_config.json"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_float_dtypes_open(model_dir: Path, dtype: type) -> None:
    save_arrays(model_dir / "model.safetensors", make_tensors(make_config(), dtype))
    checkpoint = open_checkpoint(model_dir)
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {np.dtype(dtype)}


def test_tensors_are_views_that_outlive_release(model_dir: Path) -> None:
    checkpoint = open_checkpoint(model_dir)
    name = "model.layers.1.mlp.down_proj.weight"
    view = checkpoint.tensor(name)
    before = view.tobytes()
    assert checkpoint.tensor(name).ctypes.data == view.ctypes.data
    checkpoint.release(name)
    assert view.tobytes() == before


def test_tied_head_equal_to_the_embedding_and_rotary_tables_are_tolerated(model_dir: Path) -> None:
    tensors = make_tensors(make_config())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    tensors["visual.rotary_pos_emb.inv_freq"] = np.ones(2, np.float32)
    save_arrays(model_dir / "model.safetensors", tensors)
    assert open_checkpoint(model_dir).names() == list(expected_tensors(make_config()))


def test_nested_config_opens(model_dir: Path) -> None:
    raw = make_config().to_dict()
    nested = {
        key: raw.pop(key)
        for key in list(raw)
        if key in ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps")
        or key.startswith(("num_", "rope", "max_"))
    }
    raw["text_config"] = nested
    (model_dir / "config.json").write_text(json.dumps(raw))
    assert open_checkpoint(model_dir).config == make_config()


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_config_without_what_equals_the_defaults_of_its_class(size: str) -> None:
    """`transformers` 4.49 saves of `vision_config` only what differs from its class."""
    raw = released_config(size)
    whole = ModelConfig.from_dict(raw)
    kept = {"hidden_size", "in_chans", "spatial_patch_size", "tokens_per_second"}
    if size == "3B":
        kept.add("out_hidden_size")  # of the 7B it is the default
    raw["vision_config"] = {k: v for k, v in raw["vision_config"].items() if k in kept}
    assert ModelConfig.from_dict(raw) == whole


def test_defaults_are_those_of_transformers() -> None:
    pytest.importorskip("torch")
    from transformers import Qwen2_5_VLConfig

    raw = released_config("7B")
    for name in ("rms_norm_eps", "max_position_embeddings", "rope_theta"):
        del raw[name]
    raw["vision_config"] = {}
    ours, theirs = ModelConfig.from_dict(raw), Qwen2_5_VLConfig.from_dict(raw)
    assert ours.text.rms_norm_eps == theirs.text_config.rms_norm_eps == 1e-5
    assert ours.text.max_position_embeddings == theirs.text_config.max_position_embeddings
    assert ours.text.rope_theta == theirs.text_config.rope_parameters["rope_theta"]
    for name in ("hidden_size", "intermediate_size", "num_heads", "depth", "tokens_per_second"):
        assert getattr(ours.vision, name) == getattr(theirs.vision_config, name)


def test_ids_of_special_tokens_may_stand_in_either_place() -> None:
    """`transformers` 4.57 moves them into text_config, 4.52 leaves nulls there."""
    raw = make_config().to_dict()
    ids = [name for name in raw if name.endswith("_token_id") and name != "eos_token_id"]
    assert len(ids) == 4
    below = {k: v for k, v in raw.items() if k not in ids} | {
        "text_config": {k: raw[k] for k in ids}
    }
    nulls = raw | {"text_config": dict.fromkeys(ids)}
    assert ModelConfig.from_dict(below) == ModelConfig.from_dict(nulls) == make_config()


def test_hub_cache_snapshot_opens(model_dir: Path, tmp_path: Path) -> None:
    """A hub cache keeps `snapshots/<revision>/<name>` as links to `blobs/<hash>`."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model_dir.iterdir())):
        file.rename(blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    assert open_checkpoint(snapshot).names() == list(expected_tensors(make_config()))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_refused_when_asked_for(model_dir: Path, bad: float) -> None:
    name = "visual.blocks.1.attn.qkv.weight"
    tensors = make_tensors(make_config())
    tensors[name][19, 3] = bad
    save_arrays(model_dir / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"attn\.qkv\.weight' has a NaN or Inf at \[19, 3\]"):
        open_checkpoint(model_dir)
    lazy = open_checkpoint(model_dir, finite="access")
    lazy.tensor("model.norm.weight")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"attn\.qkv\.weight") as caught:
            lazy.tensor(name)
        assert caught.value.name == "E_NON_FINITE"
    assert not np.isfinite(open_checkpoint(model_dir, finite="never").tensor(name)[19, 3])


def test_scan_reports_progress_up_to_the_total(model_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint = open_checkpoint(model_dir, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (checkpoint.num_bytes(), checkpoint.num_bytes())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_tokenizer_may_be_smaller_than_the_vocabulary(model_dir: Path) -> None:
    edit_json(model_dir / "tokenizer.json", lambda raw: raw["model"]["vocab"].pop("w29"))
    assert open_checkpoint(model_dir).config.text.vocab_size == 40


def test_video_token_is_optional(model_dir: Path) -> None:
    edit_json(model_dir / "tokenizer.json", lambda raw: raw["added_tokens"].pop(1))
    open_checkpoint(model_dir)
