"""A whole Qwen2.5-VL directory with random weights, small enough to build in a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from la_trt.config import ModelConfig, TextConfig, VisionConfig
from la_trt.files.checkpoint import expected_tensors
from la_trt.tags import ALL_TAGS
from tests.files.samples import save_arrays

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = ["How many red circles are there?", "Describe the image.", "system user assistant"]


def tiny_tokenizer(tags: tuple[str, ...] = ALL_TAGS) -> Tokenizer:
    """A byte-level BPE of about 300 entries, its control tokens and tags at the end."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in tags])
    return tokenizer


def tiny_config(vocab_size: int, ids: Mapping[str, int]) -> ModelConfig:
    return ModelConfig(
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            mrope_section=(2, 1, 1),
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        ),
        vision=VisionConfig(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            out_hidden_size=32,
            fullatt_block_indexes=(1,),
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        eos_token_ids=(ids["<|im_end|>"],),
    )


def write_tiny_checkpoint(
    path: Path,
    *,
    seed: int = 0,
    always: tuple[str, ...] = (),
    tags: tuple[str, ...] = ALL_TAGS,
    **text_fields: Any,
) -> Path:
    """A valid model directory at `path`.

    `always`: control tokens whose logits are raised far above all others, so that greedy
    decoding gives the first of them again and again. `text_fields` replace fields of the
    decoder's config.
    """
    tokenizer = tiny_tokenizer(tags)
    ids = {t: tokenizer.token_to_id(t) for t in (*SPECIAL, *tags)}
    config = tiny_config(-(-tokenizer.get_vocab_size() // 8) * 8, ids)
    config = replace(config, text=replace(config.text, **text_fields))
    path.mkdir(parents=True)
    save_arrays(path / "model.safetensors", _tensors(config, seed, [ids[t] for t in always]))
    tokenizer.save(str(path / "tokenizer.json"))
    for name, content in _json_files(config).items():
        (path / name).write_text(json.dumps(content))
    return path


def _tensors(config: ModelConfig, seed: int, always: list[int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        scale = 1.0 if len(shape) == 1 and "bias" not in name else 0.2
        tensors[name] = (rng.standard_normal(shape) * 0.2 * scale).astype(np.float32)
        if len(shape) == 1 and "bias" not in name:
            tensors[name] += 1
    if always:
        # Every final state lies along the norm's weights; a head row of the same direction wins.
        # The first channel is made constant by its embedding, so its sign is known.
        tensors["model.embed_tokens.weight"][:, 0] = 50
        tensors["visual.merger.mlp.2.bias"][0] = 50
        tensors["model.norm.weight"][0] = 10
        for rank, index in enumerate(always):
            tensors["lm_head.weight"][index] = 0
            tensors["lm_head.weight"][index, 0] = 100 - rank
    return tensors


def _json_files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    return {
        "config.json": config.to_dict(),
        "preprocessor_config.json": {
            "min_pixels": 56 * 56,
            "max_pixels": 224 * 224,
            "patch_size": config.vision.patch_size,
            "temporal_patch_size": config.vision.temporal_patch_size,
            "merge_size": config.vision.spatial_merge_size,
        },
        "generation_config.json": {"eos_token_id": list(config.eos_token_ids)},
        "tokenizer_config.json": {},
    }
