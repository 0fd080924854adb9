"""Loading and saving model directories through torch; the bad directories are in tests/files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from la_trt.errors import CheckpointError
from la_trt.model.weights import load_model, save_pretrained
from tests.model.configs import hf_twin, random_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1])
def test_saved_weights_come_back_bitwise(tmp_path: Path, seed: int, dtype: torch.dtype) -> None:
    model = random_model(seed)
    save_pretrained(model, tmp_path / "ckpt", dtype=dtype)
    loaded = load_model(tmp_path / "ckpt", dtype=dtype)
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, model.state_dict()[name].to(dtype)), name


def test_bf16_file_opens_as_float32(tmp_path: Path) -> None:
    model = random_model(2)
    save_pretrained(model, tmp_path / "ckpt", dtype=torch.bfloat16)
    loaded = load_model(tmp_path / "ckpt").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.bfloat16().float()), name


@pytest.mark.parametrize("seed", [2, 3])
def test_directory_written_by_transformers_opens(tmp_path: Path, seed: int) -> None:
    """The released form or the newer one, sharded, tied or not: the same weights."""
    model = random_model(seed)
    hf_twin(model).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = load_model(tmp_path)
    assert loaded.config.text == model.config.text
    assert loaded.config.vision == model.config.vision
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_directory_of_ours_opens_in_transformers(tmp_path: Path) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = random_model(4)
    save_pretrained(model, tmp_path / "ckpt")
    twin, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "ckpt", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.arange(19)[None]
    positions = ids.expand(3, 1, 19)
    expected = twin(input_ids=ids, position_ids=positions).logits
    logits = model.logits(model.decoder(model.embed(ids), positions).hidden_BSE)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_saving_again_keeps_the_tokenizer_files(tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    save_pretrained(random_model(0), target)
    (target / "tokenizer.json").write_text("{}")
    save_pretrained(random_model(1), target)
    assert (target / "tokenizer.json").read_text() == "{}"
    saved = json.loads((target / "config.json").read_text())
    assert saved == random_model(1).config.to_dict() | {"torch_dtype": "float32"}


@pytest.mark.parametrize("change", ["missing", "extra", "nan"])
def test_a_bad_directory_is_refused_by_name(tmp_path: Path, change: str) -> None:
    save_pretrained(random_model(5), tmp_path / "ckpt")
    file = tmp_path / "ckpt" / "model.safetensors"
    tensors = load_file(file)
    name = "visual.merger.ln_q.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        name = "visual.merger.ln_q.bias"
        tensors[name] = torch.zeros(3)
    else:
        tensors[name][0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*" + name.replace(".", r"\.")):
        load_model(tmp_path / "ckpt")
