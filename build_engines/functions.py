"""The model-local functions of domain `lookagain`.

ONNX Runtime inlines their bodies, written in its own operators; a runtime with a plugin of the
same name puts the plugin there instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from build_engines.graph import LOOKAGAIN, MICROSOFT, OPSET

ROW_ATTENTION = "RowAttention"
VISUAL_ATTENTION_INPUTS = (
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "seqlens_k",
    "query_seqlens",
    "total_sequence_length",
    "visual_index",
)
ROW_ATTENTION_INPUTS = VISUAL_ATTENTION_INPUTS[:-1]
VISION_ATTENTION_INPUTS = ("query", "key", "value", "key_length")


class FunctionBody:
    """The nodes of one function."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self.values = {name: ir.Value(name=name) for name in inputs}
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[str],
        attrs: dict[str, Any] | None = None,
        refs: dict[str, ir.AttributeType] | None = None,
        domain: str = "",
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attrs or {}, domain=domain, num_outputs=len(outputs))
        for name, kind in (refs or {}).items():
            node.attributes.add(ir.RefAttr(name, name, kind))
        for value, name in zip(node.outputs, outputs, strict=True):
            value.name = name
            self.values[name] = value
        self.nodes.append(node)
        return node.outputs[0]

    def ints(self, name: str, values: Sequence[int] | int) -> ir.Value:
        return self.op("Constant", [], [name], {"value": ir.tensor(np.asarray(values, np.int64))})

    def floats(self, name: str, value: float) -> ir.Value:
        return self.op("Constant", [], [name], {"value": ir.tensor(np.float32(value))})

    def function(
        self, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Sequence[str]
    ) -> ir.Function:
        graph = ir.Graph(
            [self.values[i] for i in inputs],
            [self.values[o] for o in outputs],
            nodes=self.nodes,
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=name,
        )
        attrs = [ir.Attr(a, ir.AttributeType.INT, None) for a in attributes]
        return ir.Function(LOOKAGAIN, name, graph=graph, attributes=attrs)


def visual_attention(dtype: str = "float32") -> ir.Function:
    """`VisualAttention`: causal attention over a cache grown in place, and the visual mass.

    Inputs `VISUAL_ATTENTION_INPUTS`, attributes `num_heads`, `kv_num_heads`; q, k and v
    (B, S, heads * D), already rotated. Outputs: y (B, S, H * D), present_key, present_value,
    and mass (B, N) float32: what query row S - 1 puts on the keys `visual_index` (B, N), summed
    over the query heads. `dtype`: of everything else.
    """
    body = FunctionBody(VISUAL_ATTENTION_INPUTS)
    last = _attention_and_last_row(body, dtype, "last_float_BHT")
    heads = body.op("ReduceSum", [last, body.ints("head_axis", [1])], ["mass_BT"], {"keepdims": 0})
    body.op("GatherElements", [heads, body.values["visual_index"]], ["mass"], {"axis": 1})
    return _attention_function(body, "VisualAttention", "mass", VISUAL_ATTENTION_INPUTS)


def row_attention(dtype: str = "float32") -> ir.Function:
    """`RowAttention`: as `visual_attention`, but its last output is the whole row.

    Output row (B, H, T) float32: the attention of query row S - 1 over all T keys, so that the
    layers can be added up before heads and keys are picked, once. Without `visual_index`.
    """
    body = FunctionBody(ROW_ATTENTION_INPUTS)
    _attention_and_last_row(body, dtype, "row")
    return _attention_function(body, ROW_ATTENTION, "row", ROW_ATTENTION_INPUTS)


def _attention_and_last_row(body: FunctionBody, dtype: str, name: str) -> ir.Value:
    """Attention, and what query row S - 1 puts on every key: `name` (B, H, T) float32."""
    v = body.values
    inputs: list[ir.Value | None] = [
        *(v[n] for n in ("query", "key", "value", "past_key", "past_value")),
        v["seqlens_k"],
        v["total_sequence_length"],
        *([None] * 9),
        v["query_seqlens"],
    ]
    body.op(
        "GroupQueryAttention",
        inputs,
        ["y", "present_key", "present_value", "probabilities_BHST"],
        {"qk_output": 2},
        {"num_heads": ir.AttributeType.INT, "kv_num_heads": ir.AttributeType.INT},
        domain=MICROSOFT,
    )
    picked = name if dtype == "float32" else "last_BHT"
    index = body.ints("last", -1)
    last = body.op("Gather", [v["probabilities_BHST"], index], [picked], {"axis": 2})
    if dtype != "float32":
        last = body.op("Cast", [last], [name], {"to": int(ir.DataType.FLOAT)})
    return last


def _attention_function(
    body: FunctionBody, name: str, result: str, inputs: Sequence[str]
) -> ir.Function:
    outputs = ("y", "present_key", "present_value", result)
    return body.function(name, inputs, outputs, ("num_heads", "kv_num_heads"))


def vision_attention(masked: bool, *, portable: bool = False) -> ir.Function:
    """`WindowAttention` (masked) or `ImageAttention`: full attention within each batch row.

    q, k and v (B, S, H * D), attribute `num_heads`; with a mask, `key_length` (B,) int32 keys
    count in each row. Output y (B, S, H * D); rows beyond `key_length` are unspecified.
    `portable`: a body of the standard's `Attention` in place of ONNX Runtime's operator.
    """
    names = VISION_ATTENTION_INPUTS if masked else VISION_ATTENTION_INPUTS[:3]
    body = FunctionBody(names)
    v = body.values
    inputs: list[ir.Value | None] = [v["query"], v["key"], v["value"]]
    if masked:
        inputs += [None, v["key_length"]]
    if portable:
        _standard_attention(body, masked)
    else:
        refs = {"num_heads": ir.AttributeType.INT}
        body.op("MultiHeadAttention", inputs, ["y"], {}, refs, domain=MICROSOFT)
    name = "WindowAttention" if masked else "ImageAttention"
    return body.function(name, names, ("y",), ("num_heads",))


def _standard_attention(body: FunctionBody, masked: bool) -> None:
    """`Attention`, the mask (B, 1, S, S) true where a key counts."""
    v = body.values
    inputs: list[ir.Value | None] = [v["query"], v["key"], v["value"]]
    if masked:
        length = body.op("Shape", [v["key"]], ["length"], {"start": 1, "end": 2})
        zero, one = body.ints("zero", 0), body.ints("one", 1)
        stop = body.op("Squeeze", [length], ["stop"])
        index_S = body.op("Range", [zero, stop, one], ["index_S"])
        axes = body.ints("mask_axes", [1, 2, 3])
        int64 = {"to": int(ir.DataType.INT64)}
        count = body.op("Cast", [v["key_length"]], ["count_B"], int64)
        count = body.op("Unsqueeze", [count, axes], ["count_B111"])
        counts = body.op("Less", [index_S, count], ["counts_B11S"])
        shape = [body.ints("two_ones", [1, 1]), length, body.ints("one_axis", [1])]
        every_row = body.op("Concat", shape, ["every_row"], {"axis": 0})
        inputs.append(body.op("Expand", [counts, every_row], ["mask_B1SS"]))
    heads = dict.fromkeys(("q_num_heads", "kv_num_heads"), ir.AttributeType.INT)
    node = ir.node("Attention", inputs, {}, num_outputs=1)
    for name, kind in heads.items():
        node.attributes.add(ir.RefAttr(name, "num_heads", kind))
    node.outputs[0].name = "y"
    body.values["y"] = node.outputs[0]
    body.nodes.append(node)
