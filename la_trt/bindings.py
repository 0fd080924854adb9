"""The one table of graph inputs and outputs: name, dtype, symbolic shape.

Builders write graphs with exactly these bindings; engines read the table and refuse a graph
that has others. Shape letters: B sequences, S new tokens of each, T KV positions in use,
M visual rows, N visual keys, R logits rows, E width, V vocabulary, K KV heads, C KV capacity,
D head dim, G images, P patches of one image, W windows, Q patches of the largest window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  # numpy learns "bfloat16"
import numpy as np

from la_trt.config import ModelConfig

Dim = int | str
KV_CODES = ("int8", "float8_e4m3fn")
_CAPACITY_STEP = 64


@dataclass(frozen=True, slots=True)
class Binding:
    """One graph input or output. `dtype` is a numpy name; letters in `shape` are free."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one binding of known shape stands in a block of memory, in bytes."""

    binding: Binding
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def shape_of(binding: Binding, letters: Mapping[str, int]) -> tuple[int, ...]:
    """The binding's shape with every letter replaced by its size."""
    return tuple(d if isinstance(d, int) else letters[d] for d in binding.shape)


def place(
    bindings: Iterable[Binding], letters: Mapping[str, int], *, align: int = 256
) -> tuple[dict[str, Place], int]:
    """The bindings one after another in one block, each at a multiple of `align`; its bytes."""
    places: dict[str, Place] = {}
    end = 0
    for binding in bindings:
        shape = shape_of(binding, letters)
        num_bytes = math.prod(shape) * np.dtype(binding.dtype).itemsize
        offset = -(-end // align) * align
        places[binding.name] = Place(binding, shape, offset, num_bytes)
        end = offset + num_bytes
    return places, -(-end // align) * align


def decoder_inputs(
    config: ModelConfig, *, mass: bool = True, dtype: str = "float32", kv_dtype: str = ""
) -> tuple[Binding, ...]:
    """The decoder's inputs, the KV cache last; `visual_index` only with `mass`.

    `dtype`: of embeddings and rotary tables (float32, float16 or bfloat16); `kv_dtype`: of the KV
    cache, `dtype` where it is not given, or one of KV_CODES, with a scale for each row of D.
    `visual_row` is -1 where the token's own embedding stands. `cos` and `sin` are those of
    M-RoPE, already chosen by section. `seqlens_k` counts the KV positions after this step less
    one, `query_seqlens` the tokens that are appended (0: an idle row, its KV untouched).
    `logits_row` names rows of the flattened (B * S) tokens; none is allowed.
    """
    t = config.text
    return (
        Binding("input_ids", "int64", ("B", "S")),
        Binding("visual_row", "int64", ("B", "S")),
        Binding("visual_embeds", dtype, ("M", t.hidden_size)),
        Binding("cos", dtype, ("B", "S", t.head_dim // 2)),
        Binding("sin", dtype, ("B", "S", t.head_dim // 2)),
        Binding("seqlens_k", "int32", ("B",)),
        Binding("query_seqlens", "int32", ("B",)),
        Binding("total_sequence_length", "int32", (1,)),
        *([Binding("visual_index", "int64", ("B", "N"))] if mass else []),
        Binding("logits_row", "int64", ("R",)),
        *kv_bindings(config, "past", kv_dtype or dtype),
    )


def decoder_outputs(
    config: ModelConfig, *, mass: bool = True, dtype: str = "float32", kv_dtype: str = ""
) -> tuple[Binding, ...]:
    """The decoder's outputs. `present_*` are bound to the same memory as `past_*`, in its type;
    logits and mass are float32 always.

    `visual_mass` (only with `mass`) is the probability that row S - 1 puts on each key of
    `visual_index`, mean over layers and query heads.
    """
    return (
        Binding("logits", "float32", ("R", config.text.vocab_size)),
        *([Binding("visual_mass", "float32", ("B", "N"))] if mass else []),
        *kv_bindings(config, "present", kv_dtype or dtype),
    )


def kv_bindings(config: ModelConfig, prefix: str, kv_dtype: str) -> tuple[Binding, ...]:
    """Every layer's K and V; where they are codes, every layer's scales after them."""
    t = config.text
    rows = ("B", t.num_key_value_heads, "C")
    names = kv_names(prefix, t.num_hidden_layers)
    scales = kv_names(prefix, t.num_hidden_layers, "_scale") if kv_dtype in KV_CODES else ()
    return (
        *(Binding(n, kv_dtype, (*rows, t.head_dim)) for n in names),
        *(Binding(n, "float32", rows) for n in scales),
    )


def kv_names(prefix: str, num_layers: int, suffix: str = "") -> tuple[str, ...]:
    """`prefix_key.0, prefix_value.0, prefix_key.1, ...`; of scales `prefix_key_scale.0, ...`."""
    kinds = (f"key{suffix}", f"value{suffix}")
    return tuple(f"{prefix}_{kind}.{i}" for i in range(num_layers) for kind in kinds)


def kv_capacity(max_len: int) -> int:
    """C for slots of `max_len` tokens: every row of every slot's scales begins at 256 bytes."""
    return -(-max_len // _CAPACITY_STEP) * _CAPACITY_STEP


def sampling_inputs() -> tuple[Binding, ...]:
    """How a token is drawn from each row of logits, where the engine draws (`base.Draw`)."""
    return (
        Binding("uniform", "float64", ("R",)),
        Binding("temperature", "float32", ("R",)),
        Binding("top_k", "int32", ("R",)),
        Binding("top_p", "float32", ("R",)),
        Binding("banned", "int64", ("R",)),
    )


def sampling_outputs() -> tuple[Binding, ...]:
    """The token drawn from each row of logits, -1 where they are not all finite, and the logarithm
    of its probability at temperature 1.
    """
    return (Binding("token", "int64", ("R",)), Binding("logprob", "float32", ("R",)))


def vision_inputs(config: ModelConfig, *, dtype: str = "float32") -> tuple[Binding, ...]:
    """The vision tower's inputs: G images of one size, patches in window order.

    `window_patch` (W, Q) names rows of the flattened (G * P) patches, padded with 0 at the end
    of a short window; `window_length` (W,) counts the valid ones; `patch_slot` (G * P,) names
    for each patch its place in the flattened (W * Q).
    """
    v = config.vision
    return (
        Binding("pixel_values", dtype, ("G", "P", v.patch_dim)),
        Binding("cos", dtype, ("G", "P", v.head_dim // 2)),
        Binding("sin", dtype, ("G", "P", v.head_dim // 2)),
        Binding("window_patch", "int64", ("W", "Q")),
        Binding("window_length", "int32", ("W",)),
        Binding("patch_slot", "int64", ("GP",)),
    )


def vision_outputs(config: ModelConfig, *, dtype: str = "float32") -> tuple[Binding, ...]:
    """The vision tower's output: merged tokens in window order."""
    return (Binding("visual_embeds", dtype, ("M", config.vision.out_hidden_size)),)
