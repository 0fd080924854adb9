"""The C++ tokenizer, pixels, random numbers, sampling and templates equal the Python ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from la_trt.assets import TINY_CHECKPOINT
from la_trt.processor.features import ImageConfig, preprocess
from la_trt.processor.template import DEFAULT_TEMPLATE, ChatTemplate
from la_trt.processor.tokenizer import Vocabulary
from la_trt.sampling import Sampler, SamplingParams, entropy_nats, log_partition
from tests.cpp import needs_cpp
from tests.embedding.probe import ask_probe, write_rgb
from tests.tiny import tiny_tokenizer

pytestmark = [needs_cpp, pytest.mark.slow, pytest.mark.timeout(1200)]

# The pre-tokeniser of the published Qwen2 and Qwen2.5 checkpoints.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THREE_DIGITS = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def tokenizers() -> dict[str, dict[str, Any]]:
    """GPT-2's pattern, the shipped checkpoint's, Qwen2's with NFC, and one with a count."""
    plain: dict[str, Any] = json.loads(tiny_tokenizer().to_str())
    shipped = json.loads((TINY_CHECKPOINT / "tokenizer.json").read_text())
    out = {"byte_level": plain, "shipped": shipped}
    for name, pattern in (("qwen2", QWEN2), ("three_digits", THREE_DIGITS)):
        split = {"type": "Split", "behavior": "Isolated", "invert": False}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        steps = [{**split, "pattern": {"Regex": pattern}}, {**byte_level, "trim_offsets": False}]
        pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}
        out[name] = {**plain, "normalizer": {"type": "NFC"}, "pre_tokenizer": pre_tokenizer}
    return out


def texts() -> list[str]:
    """Ordinary text, what breaks patterns and normal forms, and characters of every block."""
    rng = random.Random(0)
    alphabet = (
        "abc XYZ\n\t.,<>|_/0159éüß你好😀\u0301\u200d\u00a0'\"\\{}sStTmM\u017f\r"
        "\u3000가ᄀ\u1161\u11a8\u0327\u0323\u0f73\u1e9b\u212b\u0344\u0958\ufb1d\u2028\u0345"
    )
    out = ["".join(rng.choices(alphabet, k=rng.randrange(60))) for _ in range(500)]
    codes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    out += ["".join(map(chr, rng.choices(codes, k=rng.randrange(30)))) for _ in range(300)]
    marks = range(0x300, 0x370)
    out += ["e" + "".join(map(chr, rng.choices(marks, k=5))) for _ in range(300)]
    out += [chr(c) for c in codes if c < 0x3400 or 0x1D000 <= c < 0x1F000 or c % 61 == 0]
    out += ["I'll DON'T WE'RE It'ſ 'SS  x   \n\n  y", "x" * 3000, " " * 400 + "a", "1234567"]
    out += ["\n".join(" " * i for i in range(30)), "def f(x):\r\n    return {'a': [1, 2]}  # ok\r"]
    return out


def test_the_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    samples, requests = texts(), []
    for name, raw in tokenizers().items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(raw))
        requests.append({"op": "encode", "tokenizer": str(path), "texts": samples})
    for (name, raw), got in zip(tokenizers().items(), ask_probe(requests), strict=True):
        vocabulary = Vocabulary(raw)
        for text, ids in zip(samples, got, strict=True):
            assert ids == vocabulary.encode(text), f"{name}: {text!a}"


def test_pixels_are_the_same_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    config = ImageConfig(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 40)
    sizes = [(1, 1), (3, 200), (28, 28), (29, 27), (70, 100), (111, 19), (300, 500), (641, 223)]
    sizes += [tuple(int(n) for n in rng.integers(20, 400, 2)) for _ in range(12)]
    requests, images = [], []
    for i, (height, width) in enumerate(sizes):
        noise = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        if i % 3 == 0:
            noise = np.where(noise > 127, np.uint8(255), np.uint8(0))
        images.append(Image.fromarray(noise))
        entry = write_rgb(images[-1], tmp_path / f"{i}.rgb")
        out = str(tmp_path / f"{i}.f32")
        requests.append({"op": "pixels", "config": config.to_dict(), "out": out, **entry})
    for i, (image, grid) in enumerate(zip(images, ask_probe(requests), strict=True)):
        want = preprocess(image, config)
        assert grid == want.grid_thw[1:].tolist(), image.size
        got = np.fromfile(tmp_path / f"{i}.f32", np.float32)
        assert np.array_equal(got, want.pixel_values.reshape(-1)), image.size


def test_random_numbers_are_numpys() -> None:
    draws = [-1, 5, -1, 100, 1, -1, 37, 1000, -1]
    seeds = [[0, 0], [1, 0, 1], [2**63 - 1, 3], [12345678901234, 7, 1], [1, 2, 3, 4, 5, 6]]
    got = ask_probe([{"op": "random", "seed": seed, "draws": draws} for seed in seeds])
    for seed, answer in zip(seeds, got, strict=True):
        rng = np.random.default_rng(seed)
        want = [rng.random() if n < 0 else rng.permutation(n).tolist() for n in draws]
        assert answer == want


def test_samplers_draw_the_same_tokens() -> None:
    rng = np.random.default_rng(4)
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.4},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.7},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1},
        {"temperature": 1e-3, "top_k": 3},
        {"temperature": 2.0, "top_k": 1},
    ]
    requests = []
    for i, options in enumerate(settings * 2):
        logits = (rng.standard_normal(900) * 4).round(1 if i % 2 else 6)  # ties, too
        prompt = rng.integers(0, 900, 20).tolist()
        banned = int(logits.argmax()) if i % 3 == 0 else -1
        request = {"logits": logits.astype(np.float32).astype(float).tolist(), "prompt": prompt}
        requests.append(
            {"op": "draw", "count": 60, "seed": i, "banned": banned, **request, **options}
        )
    for request, (tokens, total, entropy) in zip(requests, ask_probe(requests), strict=True):
        logits = np.array(request["logits"], np.float32)
        names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
        params = SamplingParams(**{n: request[n] for n in names if n in request})
        sampler, want = Sampler(params, request["prompt"]), []
        for _ in range(60):
            banned = () if request["banned"] < 0 else (request["banned"],)
            want.append(sampler.draw(logits, banned=banned))
            sampler.accept(want[-1])
        assert tokens == want
        assert total == pytest.approx(log_partition(logits), abs=1e-5)
        assert entropy == pytest.approx(entropy_nats(logits), abs=1e-5)


# The forms of published templates: Qwen2.5-VL's, with a namespace, ChatML with slices and trims.
TEMPLATES = [
    DEFAULT_TEMPLATE,
    json.loads((TINY_CHECKPOINT / "tokenizer_config.json").read_text())["chat_template"],
    "{% set count = namespace(value=0) %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c['type'] == 'image' or 'image' in c or 'image_url' in c %}"
    "{% set count.value = count.value + 1 %}{% if add_vision_id %}Picture {{ count.value }}: "
    "{% endif %}[image]{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{%- if messages[0]['role'] == 'system' %}\n  {%- set first = messages[0].content | trim %}\n"
    "  {%- set rest = messages[1:] -%}\n{% else %}\n  {% set first = '' %}\n"
    "  {% set rest = messages %}\n{% endif %}\n\n  {# a comment #}\n  <{{ first }}>\n"
    "{% for m in rest %}\n    {% if not loop.last and m.content is not mapping %}\n"
    "  {{ loop.index0 }} {{ m.role ~ '!' }} \n    {% else %}\nlast {{ m['role'] }}\n"
    "    {% endif %}\n"
    "{% else %}\nnobody\n{% endfor %}\n{{- '' if rest | length > 1 else 'few' }}\n",
]


def test_templates_render_the_same() -> None:
    text = [{"type": "text", "text": "  Wie viele? é  "}]
    talks: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": "hi"}],
        [
            {"role": "system", "content": "  Be brief.\n"},
            {"role": "user", "content": [{"type": "image"}, {"type": "image"}, *text]},
            {"role": "assistant", "content": "three"},
            {"role": "user", "content": text},
        ],
        [{"role": "user", "content": " long é" * 100_000}] * 3,  # within the bounds of both
        [{"role": "user", "content": "short"}] * 800,
    ]
    requests = [
        {
            "op": "render",
            "template": template,
            "variables": {"messages": talk, "add_generation_prompt": True, "tools": None},
        }
        for template in TEMPLATES
        for talk in talks
    ]
    for request, got in zip(requests, ask_probe(requests), strict=True):
        want = ChatTemplate(request["template"]).render(
            request["variables"]["messages"], add_generation_prompt=True
        )
        assert got == want
