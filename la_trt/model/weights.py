"""Checkpoint directories <-> models. All checks of a directory are those of `la_trt.files`."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from la_trt.files.atomic import atomic_directory
from la_trt.files.checkpoint import TOKENIZER_FILES, Checkpoint, open_checkpoint
from la_trt.files.safetensors_writer import TensorSource, write_safetensors
from la_trt.model.vlm import QwenVL

BF16 = np.dtype(ml_dtypes.bfloat16)
STORED_DTYPES = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: BF16,
}


def load_model(
    directory: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> QwenVL:
    """The model in a Hugging Face directory, in eval mode, every weight from its files.

    Raises CheckpointError naming file and tensor; the tokenizer is not needed here.
    """
    checkpoint = open_checkpoint(directory, finite="access", require_tokenizer=False)
    return model_from_checkpoint(checkpoint, dtype=dtype, device=device)


def model_from_checkpoint(
    checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> QwenVL:
    """The model of an open checkpoint; one tensor at a time is held twice."""
    with torch.device("meta"):
        model = QwenVL(checkpoint.config)
    tensors: dict[str, Tensor] = {}
    for name in checkpoint.names():
        tensors[name] = to_torch(checkpoint.tensor(name)).to(device=device, dtype=dtype)
        checkpoint.release(name)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def to_torch(array: NDArray[Any]) -> Tensor:
    """A copy of an array as a tensor; `ml_dtypes.bfloat16` becomes torch.bfloat16."""
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_numpy(tensor: Tensor, dtype: torch.dtype) -> NDArray[Any]:
    """The tensor as a host array of `dtype`; torch.bfloat16 becomes `ml_dtypes.bfloat16`."""
    tensor = tensor.detach().to("cpu", dtype).contiguous()
    array: NDArray[Any]
    if dtype == torch.bfloat16:
        array = tensor.view(torch.uint16).numpy().view(BF16)
    else:
        array = tensor.numpy()
    return array


def write_model(model: QwenVL, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes `config.json` and `model.safetensors` (released names) into a directory as it is."""
    sources = [
        TensorSource(
            name, STORED_DTYPES[dtype], tuple(tensor.shape), partial(to_numpy, tensor, dtype)
        )
        for name, tensor in model.state_dict().items()
    ]
    write_safetensors(directory / "model.safetensors", sources, metadata={"format": "pt"})
    config = model.config.to_dict() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    text = json.dumps(config, indent=2) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def save_pretrained(
    model: QwenVL,
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    companions: str | Path | None = None,
) -> None:
    """Writes a model directory, all or nothing, replacing an older one.

    Tokenizer, template and processor files are copied from `companions`, by default from the
    older directory. Raises MachineError for a directory that holds anything but a model.
    """
    directory = Path(directory)
    companions = directory if companions is None else Path(companions)
    with atomic_directory(directory, marker="config.json") as staging:
        for name in TOKENIZER_FILES:
            if (companions / name).is_file():
                shutil.copyfile(companions / name, staging / name)
        write_model(model, staging, dtype=dtype)
