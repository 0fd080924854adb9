"""The shapes that engines are built for: ranges of every letter in `la_trt/bindings.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from la_trt.bindings import Binding, decoder_inputs, kv_capacity, vision_inputs
from la_trt.config import ModelConfig
from la_trt.engines.tensorrt_record import Profile, Shape

Range = tuple[int, int, int]
_LIKELY_VISUAL = 256


def decoder_profiles(
    config: ModelConfig,
    *,
    max_batch: int,
    max_len: int,
    chunk: int,
    quant: str,
    kv_dtype: str = "",
) -> tuple[Profile, ...]:
    """`decode` (one token of each sequence) and `prefill` (a chunk of one), or both as one.

    One, `any`, where the weights are codes: with two profiles TensorRT-RTX 1.7 puts many integers
    into the plan twice, and writes some fp8 weights out decoded in `prefill` (docs/tensorrt.md).
    It compiles kernels for the shapes that it meets anyway.
    """
    likely, capacity = min(_LIKELY_VISUAL, max_len), kv_capacity(max_len)
    letters: dict[str, Range] = {
        "B": (1, 1, max_batch),
        "S": (1, 1, 1),
        "M": (1, likely, max_len),
        "C": (1, capacity, capacity),
        "N": (0, likely, max_len),
        "R": (0, 1, max_batch),
    }
    chunk = min(chunk, max_len)
    inputs = decoder_inputs(config, kv_dtype=kv_dtype)
    if quant != "none":
        return (_profile("any", inputs, {**letters, "S": (1, 1, chunk)}),)
    many: dict[str, Range] = {"B": (1, 1, 1), "S": (1, chunk, chunk), "R": (0, 1, 1)}
    return (
        _profile("decode", inputs, letters),
        _profile("prefill", inputs, {**letters, **many}),
    )


def vision_profiles(config: ModelConfig, *, max_pixels: int) -> tuple[Profile, ...]:
    """`image`: one image of any size that the processor lets through."""
    v = config.vision
    unit = v.spatial_merge_size**2
    tokens = max(1, max_pixels // v.patch_size**2 // unit)
    patches, likely = tokens * unit, max(1, tokens // 2) * unit
    side = max(1, v.window_size // v.spatial_merge_size // v.patch_size)
    windows = most_windows(tokens, side)
    largest = side * side * unit
    letters: dict[str, Range] = {
        "G": (1, 1, 1),
        "P": (unit, likely, patches),
        "W": (1, max(1, windows // 2), windows),
        "Q": (unit, min(largest, likely), min(largest, patches)),
        "GP": (unit, likely, patches),
    }
    return (_profile("image", vision_inputs(config), letters),)


def most_windows(tokens: int, side: int) -> int:
    """The most windows of `side` x `side` tokens that an image of up to `tokens` tokens has."""
    return max(-(-h // side) * -(-(tokens // h) // side) for h in range(1, tokens + 1))


def _profile(name: str, inputs: Sequence[Binding], letters: Mapping[str, Range]) -> Profile:
    def shape(binding: Binding, i: int) -> Shape:
        return tuple(d if isinstance(d, int) else letters[d][i] for d in binding.shape)

    return Profile(
        name=name, shapes={b.name: (shape(b, 0), shape(b, 1), shape(b, 2)) for b in inputs}
    )
