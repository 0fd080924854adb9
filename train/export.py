"""Writes a trained model as a Hugging Face directory of Qwen2.5-VL, in bfloat16."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from la_trt.config import ModelConfig
from la_trt.files.atomic import atomic_directory
from la_trt.files.names import expected_tensors

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
)


def export(
    tensors: Mapping[str, Tensor], config: ModelConfig, tokenizer: Path, output: Path
) -> int:
    """The bytes of the directory `output`, written all or nothing.

    `tensors` are the model's parameters by their released names; `tokenizer` is the directory
    with the tokenizer's files.
    """
    expected = expected_tensors(config)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    assert found == expected, "the tensors are not those of the config"
    with atomic_directory(output, marker="model.safetensors") as stage:
        rounded = {n: tensors[n].detach().to(torch.bfloat16).contiguous() for n in expected}
        save_file(rounded, stage / "model.safetensors", metadata={"format": "pt"})
        (stage / "model.safetensors").chmod(0o644)
        values = {**config.to_dict(), "torch_dtype": "bfloat16"}
        _write(stage / "config.json", values)
        _write(
            stage / "generation_config.json",
            {
                "do_sample": False,
                "bos_token_id": None,
                "eos_token_id": list(config.eos_token_ids),
                "pad_token_id": config.eos_token_ids[-1],
            },
        )
        for name in _COPIED:
            shutil.copyfile(tokenizer / name, stage / name)
    return sum(path.stat().st_size for path in output.iterdir())


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
