"""The shape of the small checkpoint: a Qwen2.5-VL of at most 5.8 million parameters."""

from __future__ import annotations

from collections.abc import Mapping

from la_trt.config import ModelConfig, TextConfig, VisionConfig

NUM_LAYERS = 6


def tiny_vision() -> VisionConfig:
    """Four blocks of 160, windows of 112 pixels, every second block over the whole image."""
    return VisionConfig(
        depth=4,
        hidden_size=160,
        intermediate_size=448,
        num_heads=5,
        out_hidden_size=256,
        window_size=112,
        fullatt_block_indexes=(1, 3),
    )


def tiny_model(
    vocab_size: int, control_ids: Mapping[str, int], num_layers: int = NUM_LAYERS
) -> ModelConfig:
    """`num_layers` decoder layers of 256, grouped-query attention (4 heads on 2), tied head."""
    return ModelConfig(
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            mrope_section=(8, 12, 12),
            rope_theta=10000.0,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        ),
        vision=tiny_vision(),
        image_token_id=control_ids["<|image_pad|>"],
        video_token_id=control_ids["<|video_pad|>"],
        vision_start_token_id=control_ids["<|vision_start|>"],
        vision_end_token_id=control_ids["<|vision_end|>"],
        eos_token_ids=(control_ids["<|im_end|>"], control_ids["<|endoftext|>"]),
    )
