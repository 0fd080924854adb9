"""vision.onnx: patches of same-sized images, in window order, to merged visual embeddings.

Any resolution and any number of images: index tensors computed by the host say which patches
share a window, so no P x P mask exists. Short windows at the edges are padded to the longest.

A quantised tower is int8 whatever the decoder is: its matrix products are bound by arithmetic,
so int4 would be no faster, and its error was eleven times larger on random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from build_engines.functions import vision_attention
from build_engines.graph import LOOKAGAIN, GraphWriter, WeightFile
from build_engines.layers import ONNX_RUNTIME, LayerWriter, Target, WeightSource
from build_engines.progress import Progress
from build_engines.quantize import Quant
from la_trt.bindings import vision_inputs, vision_outputs
from la_trt.config import ModelConfig

RMS_EPSILON = 1e-6


def write_vision(
    path: Path,
    config: ModelConfig,
    source: WeightSource,
    *,
    quant: Quant,
    block_size: int,
    progress: Progress,
    target: Target = ONNX_RUNTIME,
) -> None:
    """Write `path` and `path.data`. `progress` advances once for each block and for the merger."""
    weights = WeightFile(path.with_name(path.name + ".data"))
    graph = GraphWriter("vision", vision_inputs(config, dtype=target.dtype), weights)
    graph.functions += [vision_attention(m, portable=target.portable) for m in (True, False)]
    tower_quant: Quant = "none" if quant == "none" else "int8"
    layers = LayerWriter(
        graph=graph, source=source, quant=tower_quant, block_size=block_size, target=target
    )
    tower = _Tower(config, graph, layers)
    x = layers.linear(graph.inputs["pixel_values"], "visual.patch_embed.proj")
    for i in range(config.vision.depth):
        x = tower.block(i, x)
        progress.advance()
    merged = tower.merge(x)
    progress.advance()
    graph.save(path, zip(vision_outputs(config, dtype=target.dtype), [merged], strict=True))


class _Tower:
    def __init__(self, config: ModelConfig, graph: GraphWriter, layers: LayerWriter) -> None:
        self.config = config.vision
        self.graph = graph
        self.layers = layers
        self.op: Any = graph.op

    def block(self, i: int, x: ir.Value) -> ir.Value:
        """(G, P, E) after attention and MLP of block `i`."""
        name, op = f"visual.blocks.{i}", self.op
        normed = self.layers.rms_norm(x, f"{name}.norm1", RMS_EPSILON)
        qkv = self.layers.linear(normed, f"{name}.attn.qkv", bias=True)
        split = self.graph.constant([self.config.hidden_size] * 3, "int64")
        q, k, v = op("Split", qkv, split, name=f"{name}.attn.split", outputs=3, axis=-1)
        q, k = (self._rotate(t, f"{name}.attn.{n}") for t, n in ((q, "q"), (k, "k")))
        attend = self._whole if i in self.config.fullatt_block_indexes else self._windows
        y = self.layers.linear(attend(q, k, v, f"{name}.attn"), f"{name}.attn.proj", bias=True)
        x = op("Add", x, y, name=f"{name}.attn.residual")
        normed = self.layers.rms_norm(x, f"{name}.norm2", RMS_EPSILON)
        mlp = self.layers.gated_mlp(normed, f"{name}.mlp", bias=True)
        return op("Add", x, mlp, name=f"{name}.mlp.residual")

    def _rotate(self, x: ir.Value, name: str) -> ir.Value:
        cos, sin = self.graph.inputs["cos"], self.graph.inputs["sin"]
        heads = self.config.num_heads
        return self.op("RotaryEmbedding", x, cos, sin, name=f"{name}.rotary", num_heads=heads)

    def _whole(self, q: ir.Value, k: ir.Value, v: ir.Value, name: str) -> ir.Value:
        heads = self.config.num_heads
        return self.op(
            "ImageAttention", q, k, v, name=f"{name}.image", domain=LOOKAGAIN, num_heads=heads
        )

    def _windows(self, q: ir.Value, k: ir.Value, v: ir.Value, name: str) -> ir.Value:
        g, op, width = self.graph, self.op, self.config.hidden_size
        flat = g.constant([-1, width], "int64")
        patches = g.inputs["window_patch"]
        packed = [
            op(
                "Gather",
                op("Reshape", t, flat, name=f"{name}.{n}.flat"),
                patches,
                name=f"{name}.{n}.packed",
                axis=0,
            )
            for t, n in ((q, "q"), (k, "k"), (v, "v"))
        ]
        y = op(
            "WindowAttention",
            *packed,
            g.inputs["window_length"],
            name=f"{name}.window",
            domain=LOOKAGAIN,
            num_heads=self.config.num_heads,
        )
        rows = op("Reshape", y, flat, name=f"{name}.rows")
        back = op("Gather", rows, g.inputs["patch_slot"], name=f"{name}.back", axis=0)
        shape = op("Shape", q, name=f"{name}.shape")
        return op("Reshape", back, shape, name=f"{name}.out")

    def merge(self, x: ir.Value) -> ir.Value:
        """(M, out): norm, then every merge x merge patches through the two-layer MLP."""
        v, op = self.config, self.op
        normed = self.layers.rms_norm(x, "visual.merger.ln_q", RMS_EPSILON)
        width = v.hidden_size * v.spatial_merge_size**2
        grouped = op(
            "Reshape", normed, self.graph.constant([-1, width], "int64"), name="visual.merger.group"
        )
        hidden = self.layers.linear(grouped, "visual.merger.mlp.0", bias=True)
        hidden = op("Gelu", hidden, name="visual.merger.gelu", approximate="none")
        return self.layers.linear(hidden, "visual.merger.mlp.2", bias=True)
