"""Writes trained weights as a Hugging Face directory of Qwen2.5-VL, in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from la_trt.config import ModelConfig
from la_trt.model import QwenVL
from la_trt.model.weights import save_pretrained


def export(
    tensors: Mapping[str, Tensor], config: ModelConfig, directory: Path, *, companions: Path
) -> None:
    """Nothing; `directory` is written all or nothing.

    `tensors` are the model's parameters by their released names; `companions` is the directory
    with the tokenizer's files.
    """
    with torch.device("meta"):
        model = QwenVL(config)
    model.load_state_dict(tensors, strict=True, assign=True)
    save_pretrained(model, directory, dtype=torch.bfloat16, companions=companions)
