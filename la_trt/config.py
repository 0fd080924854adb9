"""The Qwen2.5-VL architecture as one frozen value, read strictly from config.json.

Both published forms are read: text fields at the top level (as the released 3B, 7B and 72B
directories have them) and nested under `text_config` (as newer libraries write them). Libraries
leave out what equals the defaults of their Qwen2.5-VL class, so a field that may be missing has
that default here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from la_trt.errors import CheckpointError

# As csrc/runtime/config.cpp has them: every size and product of sizes fits 32 bits.
MAX_LAYERS = 1024
MAX_SIZE = 1 << 20
_LIMITS = {
    "depth": MAX_LAYERS,
    "num_hidden_layers": MAX_LAYERS,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 30,
    "patch_size": 1024,
    "temporal_patch_size": 64,
    "spatial_merge_size": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The vision tower and merger. Sizes in pixels, patches or channels as named."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112  # pixels
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: int = 2

    def __post_init__(self) -> None:
        _check_sizes(self)
        _require(self.hidden_size % self.num_heads == 0, "vision hidden_size % num_heads")
        _require(self.head_dim % 4 == 0, "vision head_dim % 4")
        _require(self.patch_dim <= MAX_SIZE, "values of a patch")
        merged = self.hidden_size * self.spatial_merge_size**2
        _require(merged <= MAX_SIZE, "vision hidden_size * spatial_merge_size^2")
        _require(
            self.window_size >= self.patch_size * self.spatial_merge_size,
            "vision window_size >= patch_size * spatial_merge_size",
        )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values in one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The decoder: grouped-query attention with M-RoPE and SwiGLU."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mrope_section: tuple[int, ...]
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        _check_sizes(self)
        _require(self.rope_theta > 0 and self.rms_norm_eps > 0, "rope_theta, rms_norm_eps > 0")
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads % num_key_value_heads",
        )
        _require(
            self.num_attention_heads * self.head_dim <= MAX_SIZE, "num_attention_heads * head_dim"
        )
        _require(
            len(self.mrope_section) == 3 and sum(self.mrope_section) * 2 == self.head_dim,
            f"mrope_section {self.mrope_section} must sum to head_dim/2 = {self.head_dim // 2}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A whole Qwen2.5-VL: decoder, vision tower, and the ids of its special tokens."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, where: str = "config.json") -> ModelConfig:
        """The config of a parsed `config.json`. Raises CheckpointError naming the field."""
        model_type = raw.get("model_type")
        if model_type != "qwen2_5_vl":
            raise CheckpointError(
                f"{where}: model_type is {model_type!r}, expected 'qwen2_5_vl'\n"
                "give the directory of a Qwen2.5-VL checkpoint",
                name="E_MODEL_TYPE",
            )
        try:
            return _parse(raw)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(
                f"{where}: {what[:300]}\ntake config.json from the release of these weights",
                name="E_CONFIG",
            ) from None

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """The config in a `config.json`. Raises CheckpointError when absent or not JSON."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file", name="E_MISSING_FILE") from None
        except (ValueError, RecursionError, OSError) as error:
            raise CheckpointError(f"{path}: not readable JSON ({error})", name="E_CONFIG") from None
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path}: expected a JSON object", name="E_CONFIG")
        return cls.from_dict(raw, where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of this model, in the published flat form."""
        t, v = self.text, self.vision
        return {
            "model_type": "qwen2_5_vl",
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "hidden_act": "silu",
            "vocab_size": t.vocab_size,
            "hidden_size": t.hidden_size,
            "intermediate_size": t.intermediate_size,
            "num_hidden_layers": t.num_hidden_layers,
            "num_attention_heads": t.num_attention_heads,
            "num_key_value_heads": t.num_key_value_heads,
            "head_dim": t.head_dim,
            "rope_theta": t.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(t.mrope_section)},
            "rms_norm_eps": t.rms_norm_eps,
            "max_position_embeddings": t.max_position_embeddings,
            "tie_word_embeddings": t.tie_word_embeddings,
            "use_sliding_window": False,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "eos_token_id": list(self.eos_token_ids),
            "vision_config": {
                "model_type": "qwen2_5_vl",
                "hidden_act": "silu",
                "depth": v.depth,
                "hidden_size": v.hidden_size,
                "intermediate_size": v.intermediate_size,
                "num_heads": v.num_heads,
                "out_hidden_size": v.out_hidden_size,
                "in_chans": v.in_channels,
                "in_channels": v.in_channels,
                "patch_size": v.patch_size,
                "spatial_patch_size": v.patch_size,
                "spatial_merge_size": v.spatial_merge_size,
                "temporal_patch_size": v.temporal_patch_size,
                "window_size": v.window_size,
                "fullatt_block_indexes": list(v.fullatt_block_indexes),
                "tokens_per_second": v.tokens_per_second,
            },
        }


def _check_sizes(config: VisionConfig | TextConfig) -> None:
    """Every integer field is a size from 1 to its limit, `MAX_SIZE` unless another is named."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type == "int":
            limit = _LIMITS.get(field.name, MAX_SIZE)
            _require(0 < value <= limit, f"{field.name} is {value}, must be 1 to {limit}")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise CheckpointError(f"inconsistent sizes: {what}", name="E_CONFIG")


def _int(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = raw[key] if default is None else raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"field {key!r}: expected a non-negative integer, got {value!r}")
    return value


def _parse(raw: Mapping[str, Any]) -> ModelConfig:
    text_raw: Mapping[str, Any] = {**raw, **(raw.get("text_config") or {})}
    vision_raw: Mapping[str, Any] = raw["vision_config"]
    for part in (text_raw, vision_raw):
        if part.get("hidden_act", "silu") != "silu":
            raise ValueError(f"field 'hidden_act': expected 'silu', got {part['hidden_act']!r}")
    if text_raw.get("use_sliding_window"):
        raise ValueError("field 'use_sliding_window': sliding-window attention is not supported")
    # `transformers` 4.57 may move the ids of special tokens into text_config; 4.52 has nulls there.
    ids_raw = {**text_raw, **{key: value for key, value in raw.items() if value is not None}}
    rope = text_raw.get("rope_parameters") or text_raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type not in ("mrope", "default"):
        raise ValueError(f"rope_scaling: type {rope_type!r} is not supported, expected 'mrope'")
    heads = _int(text_raw, "num_attention_heads")
    hidden = _int(text_raw, "hidden_size")
    head_dim = text_raw.get("head_dim") or hidden // max(heads, 1)
    if not text_raw.get("head_dim") and hidden % max(heads, 1):
        raise ValueError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    text = TextConfig(
        vocab_size=_int(text_raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_int(text_raw, "intermediate_size"),
        num_hidden_layers=_int(text_raw, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_int(text_raw, "num_key_value_heads"),
        head_dim=int(head_dim),
        mrope_section=tuple(int(s) for s in rope["mrope_section"]),
        rope_theta=float(rope.get("rope_theta") or text_raw.get("rope_theta") or 1e6),
        rms_norm_eps=float(text_raw.get("rms_norm_eps", 1e-5)),
        max_position_embeddings=_int(text_raw, "max_position_embeddings", 32768),
        tie_word_embeddings=bool(
            raw.get("tie_word_embeddings") or text_raw.get("tie_word_embeddings")
        ),
    )
    vision = VisionConfig(
        depth=_int(vision_raw, "depth", 32),
        hidden_size=_int(vision_raw, "hidden_size", 3584),
        intermediate_size=_int(vision_raw, "intermediate_size", 3420),
        num_heads=_int(vision_raw, "num_heads", 16),
        out_hidden_size=_int(vision_raw, "out_hidden_size", 3584),
        in_channels=_int(vision_raw, "in_channels", vision_raw.get("in_chans", 3)),
        patch_size=_int(vision_raw, "patch_size", 14),
        spatial_merge_size=_int(vision_raw, "spatial_merge_size", 2),
        temporal_patch_size=_int(vision_raw, "temporal_patch_size", 2),
        window_size=_int(vision_raw, "window_size", 112),
        fullatt_block_indexes=tuple(
            int(i) for i in vision_raw.get("fullatt_block_indexes", (7, 15, 23, 31))
        ),
        tokens_per_second=_int(vision_raw, "tokens_per_second", 4),
    )
    if vision.out_hidden_size != text.hidden_size:
        raise ValueError(
            f"vision out_hidden_size {vision.out_hidden_size} differs from hidden_size {hidden}"
        )
    eos = raw.get("eos_token_id", text_raw.get("eos_token_id"))
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return ModelConfig(
        text=text,
        vision=vision,
        image_token_id=_int(ids_raw, "image_token_id"),
        video_token_id=_int(ids_raw, "video_token_id"),
        vision_start_token_id=_int(ids_raw, "vision_start_token_id"),
        vision_end_token_id=_int(ids_raw, "vision_end_token_id"),
        eos_token_ids=tuple(int(i) for i in eos_ids),
    )
