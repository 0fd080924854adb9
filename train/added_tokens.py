"""The ten tags as tokens of a vocabulary that lacks them, as the released checkpoints do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from la_trt.errors import CheckpointError
from la_trt.files.checkpoint import TOKENIZER_FILES
from la_trt.model import QwenVL
from la_trt.processor.tokenizer import MAX_FILE_BYTES, Vocabulary, read_json_object
from la_trt.tags import ALL_TAGS


def missing_tags(vocabulary: Vocabulary) -> list[str]:
    """The tags that are no tokens yet, in their usual order."""
    return [tag for tag in ALL_TAGS if tag not in vocabulary.controls]


def write_with_tags(source: Path, directory: Path, vocab_size: int) -> dict[str, int]:
    """The ids of the tags that were added; `directory` holds the tokenizer's files with them.

    They take the next free ids, which must be rows that the embedding has (the released
    checkpoints have some hundred to spare). Raises CheckpointError where it has not.
    """
    vocabulary = Vocabulary.from_file(source / "tokenizer.json")
    tags, first = missing_tags(vocabulary), len(vocabulary)
    if first + len(tags) > vocab_size:
        raise CheckpointError(
            f"{source}: its embedding has {vocab_size} rows, {first + len(tags)} are needed for "
            f"the {len(tags)} tags\nadd rows to embedding and head first",
            name="E_TOKENIZER",
        )
    directory.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    ids = {tag: first + i for i, tag in enumerate(tags)}
    if ids:
        raw = read_json_object(source / "tokenizer.json", MAX_FILE_BYTES)
        raw["added_tokens"] = [
            *(raw.get("added_tokens") or []),
            *({"id": i, "content": tag, **_PLAIN} for tag, i in ids.items()),
        ]
        text = json.dumps(raw, ensure_ascii=False)
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")
        _list_in_config(directory / "tokenizer_config.json", ids)
    return ids


def _list_in_config(path: Path, ids: dict[str, int]) -> None:
    """Name the tags where newer libraries look first, if the file has such a list at all."""
    values = read_json_object(path, MAX_FILE_BYTES) if path.is_file() else {}
    listed = values.get("added_tokens_decoder")
    if isinstance(listed, dict):
        listed.update({str(i): {"content": tag, **_PLAIN} for tag, i in ids.items()})
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


_PLAIN: dict[str, Any] = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": False,
}


@torch.no_grad()
def start_rows(model: QwenVL, vocabulary: Vocabulary, ids: dict[str, int]) -> None:
    """Nothing; embedding and head of each new tag are the mean of those that spelt it before."""
    weights = [model.model.embed_tokens.weight]
    if not model.config.text.tie_word_embeddings:
        weights.append(model.lm_head.weight)
    for tag, row in ids.items():
        spelt = vocabulary.encode(tag)
        for weight in weights:
            weight[row] = weight[spelt].mean(0)
