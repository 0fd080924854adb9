"""The portable engine: the bundle's ONNX graphs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from la_trt.bindings import decoder_inputs, decoder_outputs, vision_inputs, vision_outputs
from la_trt.engines.base import (
    EngineLimits,
    FloatArray,
    IntArray,
)
from la_trt.engines.huge_pages import HugePages
from la_trt.engines.onnx_runner import DecoderRunner
from la_trt.engines.onnx_session import CPU, open_session
from la_trt.engines.onnx_vision import VisionRunner
from la_trt.engines.ort import ort
from la_trt.engines.rope import rotate_keys
from la_trt.engines.rows import RowEngine
from la_trt.engines.slots import SlotTable
from la_trt.errors import UsageError
from la_trt.files.bundle import Bundle

_PROBABILITY_BYTES = 64 << 20
_CHUNK_TOKENS = (16, 256)
_IDLE_ROWS = 3


class OnnxEngine(RowEngine):
    """An `Engine` on ONNX Runtime. KV slots are rows of one host buffer for each layer.

    `threads`: of the CPU, all by default. `providers`: exactly these, or MachineError
    (E_PROVIDER); nothing falls back. `provider_options`: by provider, such as
    {"CUDAExecutionProvider": {"device_id": "1"}}. The KV cache lies in host memory whatever the
    provider. `max_len`: KV positions of a slot, at most the bundle's; memory is touched only as
    slots fill. `mass`: without, the visual mass cannot be asked for, and decoding is a little
    faster. `huge_pages`: move the weights to huge pages, in the background (Linux, a large
    model); `pages.wait()` says how many bytes were moved. `profile`: record what every node of the
    decoder takes; `end_profile()` writes it to a file of this path with the time added.
    """

    _decoder: DecoderRunner

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        providers: Sequence[str] = (CPU,),
        provider_options: Mapping[str, Mapping[str, str]] | None = None,
        max_batch: int = 8,
        max_len: int | None = None,
        mass: bool = True,
        huge_pages: bool = True,
        profile: Path | None = None,
    ) -> None:
        self._config = bundle.config
        self._slots = SlotTable.of_bundle(bundle.limits.max_model_len, max_batch, max_len)
        config = self._config
        self.pages = HugePages()
        with self.pages.collecting() if huge_pages else nullcontext():
            decoder = open_session(
                bundle.file("decoder.onnx" if mass else "decoder_plain.onnx"),
                decoder_inputs(config, mass=mass),
                decoder_outputs(config, mass=mass),
                threads=threads,
                providers=providers,
                provider_options=provider_options,
                profile=profile,
            )
        vision = open_session(
            bundle.file("vision.onnx"),
            vision_inputs(config),
            vision_outputs(config),
            threads=threads,
            providers=providers,
            provider_options=provider_options,
        )
        self._vision = VisionRunner(vision, config.vision)
        self._decoder = DecoderRunner(decoder, config, max_batch, self._slots.max_len, mass=mass)
        self._mass = mass
        self._profiled = decoder if profile is not None else None
        self._limits = EngineLimits(
            name="onnx",
            device="cpu" if tuple(providers) == (CPU,) else providers[0],
            dtype="float32" if bundle.manifest.quant == "none" else bundle.manifest.quant,
            max_batch=max_batch,
            max_len=self._slots.max_len,
            details={
                "onnxruntime": ort.__version__,
                "providers": ",".join(decoder.get_providers()),
            },
        )

    def end_profile(self) -> Path:
        """The file of what was recorded, in Chrome's trace format. Raises UsageError without."""
        if self._profiled is None:
            raise UsageError("profile: this engine was opened without it")
        return Path(self._profiled.end_profiling())

    def vision(self, pixel_values: FloatArray, grid_thw: IntArray) -> FloatArray:
        """Visual embeddings (M, E), images in order; same-sized images run together."""
        return self._vision(pixel_values, grid_thw)

    def _chunk(self, total: int) -> int:
        """Tokens of one prefill run, so that H * S * T probabilities stay within bounds."""
        fit = _PROBABILITY_BYTES // (4 * self._config.text.num_attention_heads * total)
        return int(np.clip(fit, *_CHUNK_TOKENS))

    def kv_reinject(self, slot: int, source_index: IntArray, delta: int) -> None:
        """Append copies of the cached K and V at `source_index`, K rotated by `delta`."""
        length, count = self.length(slot), len(source_index)
        self._slots.check_copies(slot, source_index)
        text = self._config.text
        new = slice(length, length + count)
        for layer in range(text.num_hidden_layers):
            keys, values = self._decoder.keys(layer, slot), self._decoder.values(layer, slot)
            keys[:, new] = rotate_keys(keys[:, source_index], delta, text.rope_theta)
            values[:, new] = values[:, source_index]
        self._slots.grow(slot, count)
