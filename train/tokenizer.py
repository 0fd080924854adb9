"""The small checkpoint's tokenizer: byte-level BPE over LookWorld's text, with Qwen's controls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from la_trt.lookworld import WorldConfig, all_text
from la_trt.processor.features import ImageConfig
from la_trt.processor.tokenizer import Vocabulary
from la_trt.tags import ALL_TAGS

QWEN_CONTROLS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MAX_BPE = 512
# A letter run or one digit, each with the space before it; every other character alone.
_PIECES = r" ?\p{L}+| ?\p{N}|\s+|[^\s\p{L}\p{N}]"
_TAG = re.compile("<[/]?[A-Z]+>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MIN_PIXELS, MAX_PIXELS = 28 * 28 * 9, 28 * 28 * 80


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of at most MAX_BPE entries; digits are tokens of their own.

    Control tokens follow the BPE's ids: Qwen's, special, then the ten tags, visible.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_BPE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in QWEN_CONTROLS]
    )
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ALL_TAGS])
    return tokenizer


def corpus(num: int) -> Iterable[str]:
    """LookWorld's text without its tags, and the chat template's own words."""
    for text in all_text(num, replace(WorldConfig(), reasoning_length=3)):
        yield _TAG.sub("\n", text)
        yield "user\n assistant\n system\n"


@cache
def _trained(num_samples: int) -> str:
    """The tokenizer as JSON; seconds, so that the stages of a run share it."""
    return train_tokenizer(corpus(num_samples)).to_str()


def write_tokenizer(directory: Path, *, num_samples: int = 4000) -> Vocabulary:
    """The vocabulary, having written the files of tokenizer, template, pictures and generation."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(_trained(num_samples), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "add_bos_token": False,
            "add_prefix_space": False,
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
        },
    )
    images = ImageConfig(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    _write(directory / "preprocessor_config.json", images.to_dict())
    vocabulary = Vocabulary.from_file(directory / "tokenizer.json")
    end, pad = (vocabulary.controls[token] for token in ("<|im_end|>", "<|endoftext|>"))
    _write(
        directory / "generation_config.json",
        {"do_sample": False, "bos_token_id": None, "eos_token_id": [end, pad], "pad_token_id": pad},
    )
    return vocabulary


def padded_size(vocabulary: Vocabulary) -> int:
    """Rows of the embedding: the ids in use, rounded up to 16."""
    return -(-len(vocabulary) // 16) * 16


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
