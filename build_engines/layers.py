"""Layers that both graphs share: linear (float or quantised), RMS norm, gated MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ml_dtypes  # noqa: F401  # numpy learns "bfloat16"
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from build_engines.graph import MICROSOFT, GraphWriter
from build_engines.quantize import Quant, QuantisedMatrix, quantise, quantise_outputs
from la_trt.errors import CheckpointError

BITS = {"int8": 8, "int4": 4}
Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a graph is written for.

    `dtype`: of activations, norms and scales, and of weights that are not quantised. `kv_dtype`: of
    the KV cache, `dtype` where it is not given.
    `portable`: operators of the standard and functions of `lookagain` alone, as TensorRT wants
    them; otherwise ONNX Runtime's own operators as well, where they are faster.
    """

    dtype: Dtype = "float32"
    portable: bool = False
    kv_dtype: str = ""

    def cast(self, data: NDArray[np.float32]) -> NDArray[Any]:
        """The array in `dtype`, values out of its range refused. Raises CheckpointError."""
        if self.dtype == "float32":
            return data
        with np.errstate(over="ignore"):
            out = data.astype(np.dtype(self.dtype))
        if self.dtype == "float16" and not np.isfinite(out).all():
            raise CheckpointError(
                f"a weight of magnitude {float(np.abs(data).max()):.3g} exceeds float16\n"
                "build with --dtype bf16",
                name="E_DTYPE_RANGE",
            )
        return out


ONNX_RUNTIME = Target()


class WeightSource(Protocol):
    """Checkpoint tensors by their canonical names."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows of axis 0 as a new float32 array."""
        ...

    def release(self, name: str) -> None:
        """Give the tensor's pages back: it is not needed again soon."""
        ...


@dataclass(slots=True, kw_only=True)
class LayerWriter:
    """Writes layers with weights of `source` into `graph`, quantised as asked."""

    graph: GraphWriter
    source: WeightSource
    quant: Quant
    block_size: int
    target: Target = ONNX_RUNTIME

    def linear(self, x: ir.Value, *names: str, bias: bool = False) -> ir.Value:
        """x @ W^T (+ b); several names are stacked along the output into one matrix."""
        label = names[0]
        y = self.graph.op("MatMul", x, self.matrix(f"{label}.weight", *names), name=label)
        if not bias:
            return y
        data = self.target.cast(np.concatenate([self.rows(f"{n}.bias") for n in names]))
        return self.graph.op(
            "Add", y, self.graph.weight(f"{label}.bias", data), name=f"{label}.add"
        )

    def matrix(self, label: str, *names: str) -> ir.Value:
        """The stacked weights of `names` as one matrix (K, N), quantised as asked.

        TensorRT-RTX 1.7 fuses int8 with a product only where each output has one scale.
        """
        by_output = self.quant == "fp8" or (self.quant == "int8" and self.target.portable)
        if self.quant != "none" and not by_output:
            return self.dequantised(label, self.quantised(*names))
        data = np.concatenate([self.rows(f"{n}.weight") for n in names])
        if self.quant == "none":
            return self.graph.weight(label, np.ascontiguousarray(self.target.cast(data).T))
        codes, scale = quantise_outputs(data, self.quant, self.target.cast)
        q = self.graph.weight(f"{label}.q", codes)
        s = self.graph.weight(f"{label}.scale", scale)
        return self.graph.op("DequantizeLinear", q, s, name=f"{label}.dq", axis=1)

    def quantised(self, *names: str) -> QuantisedMatrix:
        """The stacked weights of `names` as one quantised matrix (K, N)."""
        tensors = [f"{n}.weight" for n in names]
        sizes = [self.source.shape(t)[0] for t in tensors]
        width = int(np.prod(self.source.shape(tensors[0])[1:]))
        bounds = np.cumsum([0, *sizes])

        def read(start: int, stop: int) -> NDArray[np.float32]:
            parts = []
            for tensor, low, high in zip(tensors, bounds, bounds[1:], strict=False):
                first, last = max(start, int(low)), min(stop, int(high))
                if first < last:
                    rows = self.source.rows(tensor, first - int(low), last - int(low))
                    parts.append(rows.reshape(last - first, width))
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        matrix = quantise(read, (sum(sizes), width), BITS[self.quant], self.block_size)
        for tensor in tensors:
            self.source.release(tensor)
        return matrix

    def dequantised(self, name: str, matrix: QuantisedMatrix) -> ir.Value:
        """`DequantizeLinear` of a matrix written as `name.q` and `name.scale`."""
        q, scale = self.quantised_weight(name, matrix)
        return self.graph.op(
            "DequantizeLinear", q, scale, name=f"{name}.dq", axis=0, block_size=matrix.block_size
        )

    def quantised_weight(self, name: str, matrix: QuantisedMatrix) -> tuple[ir.Value, ir.Value]:
        """The initializers (codes, scales) of a matrix."""
        dtype = ir.DataType.INT4 if matrix.bits == 4 else ir.DataType.INT8
        q = self.graph.weight(f"{name}.q", matrix.q, dtype, matrix.shape)
        return q, self.graph.weight(f"{name}.scale", self.target.cast(matrix.scale))

    def rows(self, tensor: str) -> NDArray[np.float32]:
        """A whole tensor as float32, flattened to (rows, rest); its pages are given back."""
        data = self.source.rows(tensor)
        self.source.release(tensor)
        return data.reshape(len(data), -1) if data.ndim > 2 else data

    def rms_norm(self, x: ir.Value, name: str, epsilon: float) -> ir.Value:
        """`RMSNormalization` over the last axis."""
        scale = self._norm_scale(name)
        return self.graph.op("RMSNormalization", x, scale, name=name, axis=-1, epsilon=epsilon)

    def add_and_norm(
        self, x: ir.Value, more: ir.Value, name: str, epsilon: float
    ) -> tuple[ir.Value, ir.Value]:
        """x + more, and its `rms_norm`; one operator where the target has one."""
        if self.target.portable:
            total = self.graph.op("Add", x, more, name=f"{name}.sum")
            return total, self.rms_norm(total, name, epsilon)
        normed, mean, deviation, total = self.graph.op(
            "SkipSimplifiedLayerNormalization",
            x,
            more,
            self._norm_scale(name),
            name=name,
            domain=MICROSOFT,
            outputs=4,
            epsilon=epsilon,
        )
        mean.name = deviation.name = ""  # not wanted
        return total, normed

    def _norm_scale(self, name: str) -> ir.Value:
        return self.graph.weight(f"{name}.weight", self.target.cast(self.rows(f"{name}.weight")))

    def gated_mlp(self, x: ir.Value, name: str, *, bias: bool) -> ir.Value:
        """down(silu(gate(x)) * up(x))."""
        gate = self.linear(x, f"{name}.gate_proj", bias=bias)
        up = self.linear(x, f"{name}.up_proj", bias=bias)
        op: Any = self.graph.op
        silu = op("Mul", gate, op("Sigmoid", gate, name=f"{name}.sigmoid"), name=f"{name}.silu")
        return self.linear(
            op("Mul", silu, up, name=f"{name}.gated"), f"{name}.down_proj", bias=bias
        )
