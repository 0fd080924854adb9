"""decoder.onnx: tokens and KV cache to the logits of chosen rows and the visual mass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from build_engines.attention_codes import visual_attention_of_codes
from build_engines.functions import ROW_ATTENTION, row_attention, visual_attention
from build_engines.graph import LOOKAGAIN, MICROSOFT, GraphWriter, WeightFile
from build_engines.layers import ONNX_RUNTIME, LayerWriter, Target, WeightSource
from build_engines.progress import Progress
from build_engines.quantize import Quant
from la_trt.bindings import KV_CODES, decoder_inputs, decoder_outputs
from la_trt.config import ModelConfig

DATA_SUFFIX = ".data"
_LAYERS_PER_SUM = 8


def write_decoder(
    path: Path,
    config: ModelConfig,
    source: WeightSource,
    *,
    quant: Quant,
    block_size: int,
    progress: Progress,
    target: Target = ONNX_RUNTIME,
) -> None:
    """Write `path` and `path.data`. `progress` advances once for each layer and for the head."""
    weights = WeightFile(path.with_name(path.name + DATA_SUFFIX))
    types = {"dtype": target.dtype, "kv_dtype": target.kv_dtype or target.dtype}
    graph = GraphWriter("decoder", decoder_inputs(config, **types), weights)
    if types["kv_dtype"] in KV_CODES:
        attention = visual_attention_of_codes(**types)
    else:
        attention = (visual_attention if target.portable else row_attention)(target.dtype)
    graph.functions.append(attention)
    layers = LayerWriter(
        graph=graph, source=source, quant=quant, block_size=block_size, target=target
    )
    decoder = _Decoder(config, graph, layers, attention)
    x = decoder.embed()
    more: ir.Value | None = None
    present: list[ir.Value] = []
    scales: list[ir.Value] = []
    for i in range(config.text.num_hidden_layers):
        x, more, cache = decoder.layer(i, x, more)
        present += cache[:2]
        scales += cache[2:]
        progress.advance()
    assert more is not None, "a decoder has layers"
    outputs = [decoder.logits(x, more), decoder.mean_mass(), *present, *scales]
    progress.advance()
    graph.save(path, zip(decoder_outputs(config, **types), outputs, strict=True))


class _Decoder:
    """Layers that follow one another; `attention`: the function that each of them calls."""

    def __init__(
        self,
        config: ModelConfig,
        graph: GraphWriter,
        layers: LayerWriter,
        attention: ir.Function,
    ) -> None:
        self.text = config.text
        self.graph = graph
        self.layers = layers
        self.attention = attention
        self.op: Any = graph.op
        self.head: tuple[ir.Value, ir.Value] | None = None
        self.masses: list[ir.Value] = []

    def embed(self) -> ir.Value:
        """(B, S, E): visual rows where `visual_row` names one, token embeddings elsewhere."""
        g, op = self.graph, self.op
        token = self._token_embedding()
        zero = g.constant(0, "int64")
        row = op("Max", g.inputs["visual_row"], zero, name="visual_row_or_0")
        visual = op("Gather", g.inputs["visual_embeds"], row, name="visual", axis=0)
        is_text = op("Less", g.inputs["visual_row"], zero, name="is_text")
        is_text = op("Unsqueeze", is_text, g.constant([-1], "int64"), name="is_text_BS1")
        return op("Where", is_text, token, visual, name="embeds")

    def _token_embedding(self) -> ir.Value:
        g, op = self.graph, self.op
        ids = g.inputs["input_ids"]
        name = "model.embed_tokens"
        if self.layers.quant == "none" or self.layers.target.portable:
            rows = self.layers.target.cast(self.layers.rows(f"{name}.weight"))
            table = g.weight(f"{name}.weight", rows)
            self.head = (table, table)
            return op("Gather", table, ids, name="token", axis=0)
        matrix = self.layers.quantised(name)
        q, scale = self.layers.quantised_weight(f"{name}.weight", matrix)
        self.head = (q, scale)
        block = matrix.block_size
        if matrix.bits == 4:
            picked = op(
                "GatherBlockQuantized",
                q,
                ids,
                scale,
                name="token_EBS",
                domain=MICROSOFT,
                gather_axis=1,
                quantize_axis=0,
                block_size=block,
                bits=4,
            )
        else:
            codes = op("Gather", q, ids, name="token_codes", axis=1)
            scales = op("Gather", scale, ids, name="token_scales", axis=1)
            picked = op(
                "DequantizeLinear", codes, scales, name="token_EBS", axis=0, block_size=block
            )
        return op("Transpose", picked, name="token", perm=[1, 2, 0])

    def layer(
        self, i: int, x: ir.Value, more: ir.Value | None
    ) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """What the layer takes and gives is x + `more`, added by the next norm; and its present key
        and value, with their scales if there are any.
        """
        t, op, name = self.text, self.op, f"model.layers.{i}"
        norm, eps = f"{name}.input_layernorm", t.rms_norm_eps
        if more is None:
            normed = self.layers.rms_norm(x, norm, eps)
        else:
            x, normed = self.layers.add_and_norm(x, more, norm, eps)
        attn = f"{name}.self_attn"
        projections = [f"{attn}.{p}_proj" for p in "qkv"]
        qkv = self.layers.linear(normed, *projections, bias=True)
        sizes = [n * t.head_dim for n in (t.num_attention_heads, *[t.num_key_value_heads] * 2)]
        split = self.graph.constant(sizes, "int64")
        q, k, v = op("Split", qkv, split, name=f"{attn}.split", outputs=3, axis=-1)
        q = self._rotate(q, t.num_attention_heads, f"{attn}.q")
        k = self._rotate(k, t.num_key_value_heads, f"{attn}.k")
        y, key, value, mass, *scales = self._attend(i, f"{attn}.attention", query=q, key=k, value=v)
        self._collect(i, mass)
        projected = self.layers.linear(y, f"{attn}.o_proj")
        norm = f"{name}.post_attention_layernorm"
        x, normed = self.layers.add_and_norm(x, projected, norm, eps)
        mlp = self.layers.gated_mlp(normed, f"{name}.mlp", bias=False)
        return x, mlp, [key, value, *scales]

    def _attend(self, i: int, name: str, **qkv: ir.Value) -> Sequence[ir.Value]:
        """The results of the attention function; an input of it is one of `qkv`, of the layer's
        cache, or of the graph."""
        inputs = self.graph.inputs
        values = [
            qkv.get(n) or inputs.get(f"{n}.{i}") or inputs[n]
            for n in (value.name for value in self.attention.inputs)
        ]
        results: Sequence[ir.Value] = self.op(
            self.attention.name,
            *values,
            domain=LOOKAGAIN,
            outputs=len(self.attention.outputs),
            name=name,
            num_heads=self.text.num_attention_heads,
            kv_num_heads=self.text.num_key_value_heads,
        )
        return results

    def _rotate(self, x: ir.Value, num_heads: int, name: str) -> ir.Value:
        inputs = self.graph.inputs
        return self.op(
            "RotaryEmbedding",
            x,
            inputs["cos"],
            inputs["sin"],
            name=f"{name}.rotary",
            num_heads=num_heads,
        )

    def logits(self, x: ir.Value, more: ir.Value) -> ir.Value:
        """(R, V) float32 of x + more, for the rows `logits_row` of the flattened tokens alone."""
        logits = self._head_product(self.op("Add", x, more, name="hidden"))
        if self.layers.target.dtype == "float32":
            return logits
        return self.op("Cast", logits, name="logits_float", to=int(ir.DataType.FLOAT))

    def _head_product(self, x: ir.Value) -> ir.Value:
        g, op, t = self.graph, self.op, self.text
        flat = op("Reshape", x, g.constant([-1, t.hidden_size], "int64"), name="hidden_TE")
        last = op("Gather", flat, g.inputs["logits_row"], name="hidden_RE", axis=0)
        last = self.layers.rms_norm(last, "model.norm", t.rms_norm_eps)
        if not t.tie_word_embeddings:
            return self.layers.linear(last, "lm_head")
        assert self.head is not None, "embed() comes first"
        table, scale = self.head
        if self.layers.quant == "none":
            return op("Gemm", last, table, name="lm_head", transB=1)
        if self.layers.target.portable:
            head = self.layers.matrix("lm_head.weight", "model.embed_tokens")
            return op("MatMul", last, head, name="lm_head")
        alias = [self._alias(value, name) for value, name in ((table, "q"), (scale, "scale"))]
        weight = op(
            "DequantizeLinear", *alias, name="lm_head.dq", axis=0, block_size=self.layers.block_size
        )
        return op("MatMul", last, weight, name="lm_head")

    def _alias(self, value: ir.Value, suffix: str) -> ir.Value:
        """A second initializer on the same bytes: ONNX Runtime fuses only weights of one use."""
        stored = value.const_value
        name = f"lm_head.weight.{suffix}"
        if not isinstance(stored, ir.ExternalTensor):
            return self.graph.initializer(ir.tensor(stored.numpy(), name=name))
        return self.graph.initializer(
            self.graph.weights.alias(
                name, stored.offset, stored.length, stored.dtype, tuple(stored.shape)
            )
        )

    def _collect(self, i: int, mass: ir.Value) -> None:
        """Add up every few layers: fewer nodes than one at a time, less memory than all at once."""
        self.masses.append(mass)
        if len(self.masses) > _LAYERS_PER_SUM:
            self.masses = [self.op("Sum", *self.masses, name=f"visual_mass_sum.{i}")]

    def mean_mass(self) -> ir.Value:
        """(B, N): mean over layers and heads."""
        op, constant = self.op, self.graph.constant
        total = op("Sum", *self.masses, name="visual_mass_sum")
        if self.attention.name == ROW_ATTENTION:
            axis = constant([1], "int64")
            total = op("ReduceSum", total, axis, name="visual_mass_heads", keepdims=0)
            keys = self.graph.inputs["visual_index"]
            total = op("GatherElements", total, keys, name="visual_mass_keys", axis=1)
        count = self.text.num_attention_heads * self.text.num_hidden_layers
        return op("Mul", total, constant(1 / count, "float32"), name="visual_mass")
