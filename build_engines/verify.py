"""The check every build ends with: both graphs load and a tiny run of each is finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from la_trt.bindings import decoder_inputs, decoder_outputs, vision_inputs, vision_outputs
from la_trt.config import ModelConfig
from la_trt.engines.onnx_runner import DecoderRunner
from la_trt.engines.onnx_session import CPU, open_session
from la_trt.engines.onnx_vision import VisionRunner
from la_trt.engines.rope import mrope_tables
from la_trt.engines.rows import RowBatch
from la_trt.errors import GateError

_CAPACITY = 16
_PROMPT = 5


def check_vision(path: Path, config: ModelConfig) -> None:
    """Run vision.onnx on one tiny image. Raises GateError (E_SELF_CHECK) if not finite."""
    session = _open(path, vision_inputs(config), vision_outputs(config))
    v = config.vision
    grid = np.array([[1, 2 * v.spatial_merge_size, 3 * v.spatial_merge_size]])
    pixels = np.random.default_rng(0).standard_normal((int(grid.prod()), v.patch_dim))
    embeds = VisionRunner(session, v)(pixels.astype(np.float32), grid)
    _require(embeds.shape == (6, v.out_hidden_size), path, f"shape {list(embeds.shape)}")
    _require(bool(np.isfinite(embeds).all()), path, "visual embeddings are not finite")


def check_decoder(path: Path, config: ModelConfig, *, mass: bool = True) -> None:
    """Prefill and one decode step of a decoder: finite logits, and a mass that adds up.

    `mass`: whether the graph has it. Raises GateError (E_SELF_CHECK).
    """
    bindings = decoder_inputs(config, mass=mass), decoder_outputs(config, mass=mass)
    session = _open(path, *bindings)
    runner = DecoderRunner(session, config, max_batch=1, max_len=_CAPACITY, mass=mass)
    for past, count in ((0, _PROMPT), (_PROMPT, 1)):
        total = past + count
        cos, sin = mrope_tables(np.tile(np.arange(past, total), (3, 1)), config.text)
        output = runner.run(
            RowBatch(
                first_slot=0,
                input_ids=np.arange(count)[None] % config.text.vocab_size,
                visual_row=np.full((1, count), -1),
                cos=cos[None],
                sin=sin[None],
                past=np.array([past]),
                query=np.array([count]),
                visual_index=np.arange(total if mass else 0)[None],
                logits_row=np.array([count - 1]),
            )
        )
        _require(bool(np.isfinite(output.logits).all()), path, "logits are not finite")
        if mass:
            off = float(output.mass.sum()) - 1
            _require(abs(off) < 1e-3, path, f"attention over all keys sums to 1 {off:+.2g}")


def _open(path: Path, inputs: Any, outputs: Any) -> Any:
    return open_session(path, inputs, outputs, threads=None, providers=(CPU,))


def _require(condition: bool, path: Path, what: str) -> None:
    if not condition:
        raise GateError(
            f"{path.name}: the self-check after the build failed: {what}\n"
            "check the checkpoint's weights, or build with --quant none",
            name="E_SELF_CHECK",
        )
