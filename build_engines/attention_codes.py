"""`VisualAttentionOfCodes`: attention over a KV cache of codes, in the standard's operators.

For a runtime without the plugin, and the reference for its numbers: the whole cache is decoded in
every pass, which is far too slow for anything but tests.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from build_engines.functions import VISUAL_ATTENTION_INPUTS, FunctionBody

VISUAL_ATTENTION_OF_CODES_INPUTS = (
    *VISUAL_ATTENTION_INPUTS,
    "past_key_scale",
    "past_value_scale",
)
OUTPUTS = (
    "y",
    "present_key",
    "present_value",
    "mass",
    "present_key_scale",
    "present_value_scale",
)
LARGEST_CODE = {"int8": 127.0, "float8_e4m3fn": 448.0}
_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int8": ir.DataType.INT8,
    "int64": ir.DataType.INT64,
    "float8_e4m3fn": ir.DataType.FLOAT8E4M3FN,
}
_NO_SCORE = -1e30
_SMALLEST = 2.0**-100


def visual_attention_of_codes(dtype: str, kv_dtype: str) -> ir.Function:
    """As `visual_attention`, with K and V of `kv_dtype` (int8 or float8_e4m3fn) and a float32 scale
    for each row of D, inputs `past_key_scale` and `past_value_scale` (B, K, C): value = code *
    scale, rounded to `dtype`. New rows get their largest magnitude over the largest code.
    """
    body = _Codes(dtype, kv_dtype)
    body.places()
    keys, values = body.append("key"), body.append("value")
    body.attend(keys, values)
    return body.function(
        "VisualAttentionOfCodes",
        VISUAL_ATTENTION_OF_CODES_INPUTS,
        OUTPUTS,
        ("num_heads", "kv_num_heads"),
    )


class _Codes(FunctionBody):
    """Nodes with short names, numbered; shapes as suffixes."""

    def __init__(self, dtype: str, kv_dtype: str) -> None:
        super().__init__(VISUAL_ATTENTION_OF_CODES_INPUTS)
        self.dtype, self.kv_dtype = dtype, kv_dtype
        self._count = 0

    def do(self, op_type: str, *inputs: ir.Value | None, to: str = "", **attrs: Any) -> ir.Value:
        """A node of one output, named `to` where it is one of the function's."""
        self._count += 1
        return self.op(op_type, inputs, [to or f"{op_type}_{self._count}"], attrs)

    def cast(self, x: ir.Value, dtype: str, to: str = "") -> ir.Value:
        self._count += 1
        return self.op("Cast", [x], [to or f"cast_{self._count}"], {"to": int(_TYPES[dtype])})

    def whole(self, *values: int) -> ir.Value:
        self._count += 1
        return self.ints(f"ints_{self._count}", list(values))

    def real(self, value: float) -> ir.Value:
        self._count += 1
        return self.floats(f"float_{self._count}", value)

    def dim(self, x: ir.Value, axis: int) -> ir.Value:
        """(1,): the size of an axis."""
        return self.do("Shape", x, start=axis, end=axis + 1)

    def shape(self, *sizes: ir.Value) -> ir.Value:
        return self.do("Concat", *sizes, axis=0)

    def count(self, size: ir.Value) -> ir.Value:
        """0 ... size - 1."""
        axis = self.whole(0)
        zero, one = (self.do("Squeeze", self.whole(i), axis) for i in (0, 1))
        return self.do("Range", zero, self.do("Squeeze", size, axis), one)

    def widen(self, x: ir.Value, *axes: int) -> ir.Value:
        return self.do("Unsqueeze", x, self.whole(*axes))

    def places(self) -> None:
        """Sizes; the position of each token; which token is written to which position."""
        v = self.values
        self.B, self.S = self.dim(v["query"], 0), self.dim(v["query"], 1)
        self.K, self.C = self.dim(v["past_key"], 1), self.dim(v["past_key"], 2)
        self.D = self.dim(v["past_key"], 3)
        width = self.dim(v["query"], 2)
        self.G = self.do("Div", width, self.do("Mul", self.K, self.D))
        last, appended = self.cast(v["seqlens_k"], "int64"), self.cast(v["query_seqlens"], "int64")
        first = self.do("Add", self.do("Sub", last, appended), self.whole(1))
        tokens = self.count(self.S)
        self.position_BS = self.do("Add", self.widen(first, 1), tokens)
        self.keys_C = self.count(self.C)
        same = self.do("Equal", self.widen(self.keys_C, 1), self.widen(self.position_BS, 1))
        real = self.do("Less", tokens, self.widen(appended, 1, 2))
        written = self.do("And", same, real)
        self.written_B1CS = self.widen(self.cast(written, "float32"), 1)
        any_token = self.do("ReduceMax", self.written_B1CS, self.whole(3), keepdims=0)
        self.written_B1C = self.do("Greater", any_token, self.real(0.0))

    def heads(self, x: ir.Value, *sizes: ir.Value) -> ir.Value:
        """(B, S, n * D) as float32 (B, S, *sizes, D)."""
        shape = self.shape(self.B, self.S, *sizes, self.D)
        return self.do("Reshape", self.cast(x, "float32"), shape)

    def append(self, name: str) -> ir.Value:
        """The whole cache (B, K, C, D) as float32, this step's rows in it."""
        v, largest = self.values, self.real(LARGEST_CODE[self.kv_dtype])
        rows = self.do("Transpose", self.heads(v[name], self.K), perm=[0, 2, 1, 3])
        top = self.do("ReduceMax", self.do("Abs", rows), self.whole(3), keepdims=1)
        none = self.do("Less", top, self.real(_SMALLEST))
        factor = self.do("Where", none, self.real(0.0), self.do("Div", largest, top))
        codes = self.do("Mul", rows, factor)
        if self.kv_dtype == "int8":
            codes = self.do("Round", codes)
        else:
            codes = self.cast(self.cast(codes, self.kv_dtype), "float32")
        past = self.cast(v[f"past_{name}"], "float32")
        new = self.do("MatMul", self.written_B1CS, codes)
        codes = self.do("Where", self.widen(self.written_B1C, 3), new, past)
        self.cast(codes, self.kv_dtype, to=f"present_{name}")
        new = self.do("MatMul", self.written_B1CS, self.do("Div", top, largest))
        new = self.do("Squeeze", new, self.whole(3))
        old = v[f"past_{name}_scale"]
        scale = self.do("Where", self.written_B1C, new, old, to=f"present_{name}_scale")
        values = self.do("Mul", codes, self.widen(scale, 3))
        return self.cast(self.cast(values, self.dtype), "float32")

    def attend(self, keys: ir.Value, values: ir.Value) -> None:
        """y and mass; the G query heads of a KV head stand together."""
        v = self.values
        query = self.do("Transpose", self.heads(v["query"], self.K, self.G), perm=[0, 2, 3, 1, 4])
        rows = self.do("Mul", self.G, self.S)
        flat = self.do("Reshape", query, self.shape(self.B, self.K, rows, self.D))
        scores = self.do("MatMul", flat, self.do("Transpose", keys, perm=[0, 1, 3, 2]))
        root = self.do("Sqrt", self.cast(self.D, "float32"))
        scores = self.do("Div", scores, root)
        split = self.shape(self.B, self.K, self.G, self.S, self.C)
        scores = self.do("Reshape", scores, split)
        seen = self.do("LessOrEqual", self.keys_C, self.widen(self.position_BS, 1, 2, 4))
        scores = self.do("Where", seen, scores, self.real(_NO_SCORE))
        shares = self.do("Softmax", scores, axis=-1)
        joined = self.do("Reshape", shares, self.shape(self.B, self.K, rows, self.C))
        y = self.do("MatMul", joined, values)
        y = self.do("Reshape", y, self.shape(self.B, self.K, self.G, self.S, self.D))
        y = self.do("Transpose", y, perm=[0, 3, 1, 2, 4])
        width = self.do("Mul", self.do("Mul", self.K, self.G), self.D)
        self.cast(self.do("Reshape", y, self.shape(self.B, self.S, width)), self.dtype, to="y")
        last = self.do("Gather", shares, self.do("Squeeze", self.whole(-1)), axis=3)
        mass = self.do("ReduceSum", last, self.whole(1, 2), keepdims=0)
        self.do("GatherElements", mass, v["visual_index"], to="mass", axis=1)
