"""The native CPU engine: compiled kernels over weights that are packed and mapped."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

from la_trt.config import ModelConfig
from la_trt.engines.base import (
    EngineLimits,
    FloatArray,
    IntArray,
    Step,
    StepOutput,
    VisualKeys,
    check_step,
    past_lengths,
)
from la_trt.engines.rope import mrope_tables, shift_tables
from la_trt.engines.slots import SlotTable
from la_trt.engines.vision_layout import vision_layout
from la_trt.errors import BundleError, MachineError, UsageError
from la_trt.files.bundle import NATIVE_WEIGHTS, Bundle
from la_trt.files.manifest import REBUILD
from la_trt.files.safetensors import SafetensorsFile
from la_trt.limits import KV_DTYPES

LAYOUT = "1"
WEIGHTS = NATIVE_WEIGHTS
DRAFT_ROWS = 4  # beyond these a step takes longer by as much as it answers more
_TOKENS_AT_ONCE = 256


def load_module() -> Any:
    """The compiled module. Raises MachineError (E_NO_NATIVE) where it was not built."""
    try:
        return import_module("la_trt._native")
    except ImportError as error:
        raise MachineError(
            f"engine 'native': the compiled kernels are not installed ({error})\n"
            "install la-trt where a C++ compiler is, or use --backend onnx",
            name="E_NO_NATIVE",
        ) from None


def _level(module: Any, isa: str) -> str:
    """The level of that name, `auto` resolved. Raises UsageError."""
    if isa != "auto":
        if isa not in module.levels():
            raise UsageError(f"isa: expected auto or one of {module.levels()}, got {isa!r}")
        return isa
    try:
        return str(module.best_level())
    except ValueError as error:
        raise UsageError(str(error)) from None


def is_native(bundle: Bundle) -> bool:
    """Whether the compiled kernels are installed and the bundle has weights for them."""
    return find_spec("la_trt._native") is not None and WEIGHTS in bundle


class NativeEngine:
    """An `Engine` on compiled CPU kernels. Results do not depend on `threads`.

    `threads`: all that the process may use by default. `isa`: an instruction set level by name
    (`la_trt._native.levels()`), by default the best of this processor, no higher than the
    environment variable LATRT_ISA names. `kv_dtype`: of the KV cache, by default float32 beside
    float32 weights and bfloat16 beside others; int8 has one scale for each key and one for each
    value. `max_len`: KV positions of a slot, at most the bundle's; memory is touched only as slots
    fill. Weights stay in the mapped file, shared by all processes that open it.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        max_batch: int = 8,
        max_len: int | None = None,
        isa: str = "auto",
        kv_dtype: str | None = None,
    ) -> None:
        module = load_module()
        self._config = config = bundle.config
        self._slots = SlotTable.of_bundle(bundle.limits.max_model_len, max_batch, max_len)
        isa = _level(module, isa)
        if kv_dtype not in (None, *KV_DTYPES):
            raise UsageError(f"kv_dtype: expected one of {KV_DTYPES}, got {kv_dtype!r}")
        threads = module.allowed_threads() if threads is None else threads
        file = _open_weights(bundle)
        dtype = file.metadata["decoder"]
        kv_dtype = kv_dtype or ("float32" if dtype == "float32" else "bfloat16")
        shared = {"weights": _arrays(file), "isa": isa, "threads": threads}
        try:
            self._decoder = module.Decoder(**shared, **_decoder_sizes(config), kv_dtype=kv_dtype)
            self._vision = module.Vision(**shared, **_vision_sizes(config))
        except ValueError as error:
            raise BundleError(f"{file.path}: {error}\n{REBUILD}", name="E_NATIVE") from None
        except RuntimeError as error:  # what nanobind makes of a std::system_error
            raise MachineError(
                f"engine 'native': cannot start {threads} threads ({error})\nask for fewer threads"
            ) from None
        self._limits = EngineLimits(
            name="native",
            device="cpu",
            dtype=dtype,
            max_batch=max_batch,
            max_len=self._slots.max_len,
            draft_rows=DRAFT_ROWS,
            details={
                "isa": isa,
                "threads": str(threads),
                "kv_dtype": kv_dtype,
            },
        )

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    def vision(self, pixel_values: FloatArray, grid_thw: IntArray) -> FloatArray:
        """Visual embeddings (M, E), images in order; all images run in one pass."""
        v = self._config.vision
        grids = np.asarray(grid_thw, np.int64).reshape(-1, 3)
        patches = grids.prod(axis=1)
        assert pixel_values.shape == (patches.sum(), v.patch_dim), (
            f"pixel_values: expected [P={patches.sum()}, {v.patch_dim}], "
            f"got {list(pixel_values.shape)}"
        )
        unit = v.spatial_merge_size**2
        embeds = np.empty((int(patches.sum()) // unit, v.out_hidden_size), np.float32)
        if not len(grids):
            return embeds
        layouts = [vision_layout(grid, v) for grid in grids]
        starts = np.cumsum(patches) - patches
        order = np.concatenate([s + p.patch_order for s, p in zip(starts, layouts, strict=True)])
        self._vision.forward(
            np.asarray(pixel_values[order], np.float32),
            np.ascontiguousarray(np.concatenate([p.cos for p in layouts]), np.float32),
            np.ascontiguousarray(np.concatenate([p.sin for p in layouts]), np.float32),
            np.concatenate([p.window_sizes for p in layouts]).tolist(),
            patches.tolist(),
            embeds,
        )
        out = np.empty_like(embeds)
        places = [s // unit + p.token_order for s, p in zip(starts, layouts, strict=True)]
        out[np.concatenate(places)] = embeds
        return out

    def forward(self, step: Step) -> StepOutput:
        """Logits and mass of each sequence's last token; at most 256 tokens run at a time."""
        lengths = past_lengths(step, self.length)
        check_step(step, lengths, self._slots.capacities(step.slots), drafts=True)
        cos, sin = mrope_tables(step.position_ids, self._config.text)
        keys = step.visual_keys or (None,) * len(step.slots)
        logits = np.empty((len(step.slots), self._config.text.vocab_size), np.float32)
        masses: list[FloatArray | None] = [None] * len(step.slots)
        ids = np.ascontiguousarray(step.input_ids, np.int64)
        rows = None if step.visual_row is None else np.ascontiguousarray(step.visual_row, np.int64)
        embeds = step.visual_embeds
        embeds = None if embeds is None else np.ascontiguousarray(embeds, np.float32)
        for low, high, parts in _pieces(step.cu_seqlens.tolist()):
            sequences = []
            for b, first, last in parts:
                done = last == step.cu_seqlens[b + 1]
                past = lengths[b] + first - int(step.cu_seqlens[b])
                if done and keys[b] is not None:
                    masses[b] = np.empty(past + last - first, np.float32)
                row = logits[b] if done else None
                sequences.append((step.slots[b], past, last - first, row, masses[b]))
            self._decoder.forward(
                ids[low:high],
                None if rows is None else rows[low:high],
                embeds,
                np.ascontiguousarray(cos[low:high]),
                np.ascontiguousarray(sin[low:high]),
                sequences,
            )
        counts = np.diff(step.cu_seqlens)
        for slot, count in zip(step.slots, counts, strict=True):
            self._slots.grow(slot, int(count))
        visual = tuple(_by_source(m, k) for m, k in zip(masses, keys, strict=True))
        return StepOutput(logits=logits, visual_mass=visual if step.visual_keys else ())

    def kv_reinject(self, slot: int, source_index: IntArray, delta: int) -> None:
        """Append copies of cached K (rotated by `delta`) and V."""
        start, count = self.length(slot), len(source_index)
        if not count:
            return
        self._slots.check_copies(slot, source_index)
        text = self._config.text
        cos, sin = shift_tables(delta, text.rope_theta, text.head_dim)
        source = np.ascontiguousarray(source_index, np.int64)
        self._decoder.kv_reinject(slot, source, start, cos, sin)
        self._slots.grow(slot, count)

    def alloc(self, capacity: int) -> int:
        """A fresh slot. Raises MachineError: E_KV_CAPACITY, E_NO_SLOT, E_MEMORY."""
        slot = self._slots.lowest_free(capacity)
        if not self._decoder.alloc(slot, capacity):
            raise MachineError(
                f"no memory for the KV cache of {capacity} tokens\nask for fewer tokens",
                name="E_MEMORY",
            )
        self._slots.take(slot, capacity)
        return slot

    def free(self, slot: int) -> None:
        """Give the slot and its memory back."""
        self._slots.release(slot)
        self._decoder.free(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget every KV position from `length` on."""
        self._slots.truncate(slot, length)

    def length(self, slot: int) -> int:
        """KV positions in use."""
        return self._slots.length(slot)

    def read_kv(self, slot: int) -> tuple[FloatArray, FloatArray]:
        """K (after rotation) and V of a slot, (L, K, length, D) float32: for tests and parity."""
        text, length = self._config.text, self.length(slot)
        shape = (text.num_hidden_layers, text.num_key_value_heads, length, text.head_dim)
        k, v = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._decoder.read_kv(slot, length, k, v)
        return k, v


def _pieces(bounds: list[int]) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """(low, high, [(b, first, last)]): ranges of tokens, and the sequences that they hold."""
    for low in range(0, bounds[-1], _TOKENS_AT_ONCE):
        high = min(bounds[-1], low + _TOKENS_AT_ONCE)
        parts = [
            (b, max(low, first), min(high, last))
            for b, (first, last) in enumerate(pairwise(bounds))
            if first < high and last > low
        ]
        yield low, high, parts


def _by_source(mass_C: FloatArray | None, keys: VisualKeys | None) -> FloatArray | None:
    """(num_visual,) float32: what a copy received counts for its source token."""
    if mass_C is None or keys is None:
        return None
    got = mass_C[keys.kv_index]
    return np.bincount(keys.source, got, minlength=keys.num_visual).astype(np.float32)


def _open_weights(bundle: Bundle) -> SafetensorsFile:
    if WEIGHTS not in bundle:
        raise BundleError(
            f"{bundle.path}: no {WEIGHTS}, the engine 'native' has no weights here\n{REBUILD}"
            ", without --backend onnx and with a --block-size of 32 or more",
            name="E_MISSING_FILE",
        )
    file = SafetensorsFile(bundle.file(WEIGHTS), error=BundleError, todo=REBUILD)
    if file.metadata.get("layout") != LAYOUT or "decoder" not in file.metadata:
        raise BundleError(
            f"{file.path}: layout {file.metadata.get('layout')!r}, expected {LAYOUT!r}\n{REBUILD}",
            name="E_NATIVE",
        )
    return file


def _arrays(file: SafetensorsFile) -> dict[str, Any]:
    """Views of the mapped tensors; two-byte floats by their bits."""
    file.prefer_huge_pages()
    arrays = {name: file.tensor(name) for name in file.names()}
    return {n: a.view(np.uint16) if a.dtype.itemsize == 2 else a for n, a in arrays.items()}


def _decoder_sizes(config: ModelConfig) -> dict[str, Any]:
    t = config.text
    return {
        "vocab_size": t.vocab_size,
        "width": t.hidden_size,
        "ffn": t.intermediate_size,
        "num_layers": t.num_hidden_layers,
        "num_heads": t.num_attention_heads,
        "num_kv_heads": t.num_key_value_heads,
        "head_dim": t.head_dim,
        "eps": t.rms_norm_eps,
    }


def _vision_sizes(config: ModelConfig) -> dict[str, Any]:
    v = config.vision
    return {
        "width": v.hidden_size,
        "ffn": v.intermediate_size,
        "num_heads": v.num_heads,
        "head_dim": v.head_dim,
        "patch_dim": v.patch_dim,
        "merge_unit": v.spatial_merge_size**2,
        "out_width": v.out_hidden_size,
        "whole": [i in v.fullatt_block_indexes for i in range(v.depth)],
    }
