"""TensorRT that is none: plans name an ONNX graph, which ONNX Runtime computes on `FakeCuda`'s
memory when the stream gets there. Strict about shapes, profiles, addresses, aliasing and capture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from build_engines.attention_codes import LARGEST_CODE
from la_trt.bindings import KV_CODES, Binding, sampling_inputs, shape_of
from la_trt.engines.tensorrt_library import PLUGIN_NAMES, PLUGIN_NAMESPACE
from la_trt.engines.tensorrt_record import Profile
from tests.tensorrt.fake_cuda import FakeCuda

SCRATCH_BYTES = 4096
_TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "float8_e4m3fn": "FP8",
}
_ORT_TYPES: dict[str, Any] = {
    "float32": np.float32,
    "int64": np.int64,
    "int32": np.int32,
    "float16": np.float16,
    "int8": np.int8,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
}


def write_fake_plan(
    path: Path,
    graph: Path,
    inputs: Sequence[Binding],
    outputs: Sequence[Binding],
    profiles: Sequence[Profile],
    unit: int = 1,
) -> None:
    """A plan that runs `graph`. `unit`: patches of a merged token, in a vision graph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "graph": str(graph),
        "unit": unit,
        "inputs": [[b.name, b.dtype, list(b.shape)] for b in inputs],
        "outputs": [[b.name, b.dtype, list(b.shape)] for b in outputs],
        "profiles": [{n: list(s) for n, s in p.shapes.items()} for p in profiles],
    }
    path.write_text(json.dumps(body))


class FakeModule:
    """Stands for the module `tensorrt_rtx`."""

    __version__ = "0.0.fake"
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")

    class Logger:
        ERROR = 1

        def __init__(self, severity: int) -> None:
            self.severity = severity

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.engines: list[FakeEngine] = []
        self.registry = SimpleNamespace(
            all_creators_recursive=[
                SimpleNamespace(name=n, plugin_namespace=PLUGIN_NAMESPACE) for n in PLUGIN_NAMES
            ]
        )

    def get_plugin_registry(self) -> Any:
        return self.registry

    def Runtime(self, logger: Any) -> Any:
        def deserialize(data: bytes) -> Any:
            engine = FakeEngine(self, json.loads(data)) if data.startswith(b"{") else None
            if engine is not None:
                self.engines.append(engine)
            return engine

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeEngine:
    def __init__(self, module: FakeModule, plan: dict[str, Any]) -> None:
        self.module = module
        self.inputs = {n: Binding(n, d, tuple(s)) for n, d, s in plan["inputs"]}
        self.outputs = {n: Binding(n, d, tuple(s)) for n, d, s in plan["outputs"]}
        self.profiles = plan["profiles"]
        self.unit = plan["unit"]
        self.contexts: list[FakeContext] = []
        self.aliased = True
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(plan["graph"], options)

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, i: int) -> str:
        return [*self.inputs, *self.outputs][i]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_TYPES[self.binding(name).dtype])

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self.binding(name).shape)

    def get_tensor_profile_shape(self, name: str, i: int) -> list[list[int]]:
        return self.profiles[i][name]

    def get_aliased_input_tensor(self, name: str) -> str:
        return name.replace("present_", "past_") if self.aliased else ""

    def get_device_memory_size_for_profile_v2(self, i: int) -> int:
        return SCRATCH_BYTES * (i + 1)

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "user"
        context = FakeContext(self)
        self.contexts.append(context)
        return context

    def binding(self, name: str) -> Binding:
        return self.inputs.get(name) or self.outputs[name]


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.cuda = engine, engine.module.cuda
        self.profile = -1
        self.scratch = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.prepared: set[Any] = set()
        self.recorded: Any = None

    def set_device_memory(self, address: int, size: int) -> None:
        self.cuda.memory(address, size)
        self.scratch = size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == self.cuda.stream
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profiles[self.profile][name]
        if len(shape) != len(low) or not all(
            a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
        ):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self.engine.binding(name)
        assert address % 16 == 0, f"{name}: address {address:#x} is not aligned"
        self.addresses[name] = address

    def is_stream_capturable(self, stream: int) -> bool:
        return self._state() in self.prepared

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.cuda.stream
        engine = self.engine
        assert self.scratch >= engine.get_device_memory_size_for_profile_v2(self.profile)
        assert set(self.shapes) == set(engine.inputs), "inputs without a shape"
        assert set(self.addresses) == {*engine.inputs, *engine.outputs}, "no address"
        state = self._state()
        if self.cuda.captured is not None:
            assert state in self.prepared, "recorded before a pass of these shapes has run"
            self.recorded = state
        else:
            assert self.recorded is None, "a context whose graph is kept runs something else"
        self.prepared.add(state)
        arrays = self._arrays()
        self.cuda.put("enqueue", lambda: self._compute(arrays))
        return True

    def _state(self) -> Any:
        return tuple(sorted(self.shapes.items())), tuple(sorted(self.addresses.items()))

    def _arrays(self) -> dict[str, tuple[int, str, tuple[int, ...]]]:
        """Address, type and shape of every binding; each must lie in allocated memory."""
        letters: dict[str, int] = {}
        for name, shape in self.shapes.items():
            for letter, size in zip(self.engine.inputs[name].shape, shape, strict=True):
                known = letters.setdefault(letter, size) if isinstance(letter, str) else letter
                assert known == size, f"{name}: {letter} is {size}, elsewhere {known}"
        if "GP" in letters:
            letters["M"] = letters["GP"] // self.engine.unit
        arrays = {}
        for name, address in self.addresses.items():
            binding = self.engine.binding(name)
            shape = shape_of(binding, letters)
            self.cuda.array(address, binding.dtype, shape)
            arrays[name] = (address, binding.dtype, shape)
            past = name.replace("present_", "past_")
            assert self.addresses[past] == address, f"{name} is not the memory of {past}"
        return arrays

    def _compute(self, arrays: dict[str, tuple[int, str, tuple[int, ...]]]) -> None:
        io = self.engine.session.io_binding()
        kept = []
        for name, (address, dtype, shape) in arrays.items():
            data = self.cuda.array(address, dtype, shape)
            kept.append(data)
            bind = io.bind_input if name in self.engine.inputs else io.bind_output
            bind(name, "cpu", 0, _ORT_TYPES[dtype], shape, data.ctypes.data)
        self.engine.session.run_with_iobinding(io)


class FakeCalls:
    """The kernels between two passes, computed by the reference."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def kv_reinject(
        self,
        keys: Sequence[int],
        values: Sequence[int],
        scales: Sequence[int],
        source_index: int,
        cos: int,
        sin: int,
        *,
        kv_dtype: str,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        slot: int,
        num_tokens: int,
        first: int,
        stream: int,
    ) -> None:
        assert stream == self.cuda.stream
        assert 0 < num_tokens <= capacity - first
        shape = (num_kv_heads, capacity, head_dim)
        offset = slot * int(np.prod(shape)) * np.dtype(kv_dtype).itemsize
        assert len(scales) == (2 * len(keys) if kv_dtype in KV_CODES else 0)

        def work() -> None:
            source = self.cuda.array(source_index, "int64", (num_tokens,)).copy()
            assert source.min() >= 0 and source.max() < first
            tables = [self.cuda.array(a, "float32", (head_dim // 2,)) for a in (cos, sin)]
            new = slice(first, first + num_tokens)
            for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
                k = self.cuda.array(key + offset, kv_dtype, shape)
                v = self.cuda.array(value + offset, kv_dtype, shape)
                v[:, new] = v[:, source]
                if not scales:
                    k[:, new] = _turned(k[:, source], *tables)
                    continue
                k_scale, v_scale = (
                    self.cuda.array(at + slot * 4 * num_kv_heads * capacity, "float32", shape[:2])
                    for at in scales[2 * layer : 2 * layer + 2]
                )
                v_scale[:, new] = v_scale[:, source]
                rows = k[:, source].astype(np.float32) * k_scale[:, source, None]
                k[:, new], k_scale[:, new] = _codes(_turned(rows, *tables), kv_dtype)

        self.cuda.put("kv_reinject", work)

    def sample(
        self, logits: int, *, token: int, logprob: int, batch: int, vocab_size: int, **at: int
    ) -> None:
        assert at.pop("stream") == self.cuda.stream
        assert batch > 0
        types = {b.name: b.dtype for b in sampling_inputs()}
        assert set(at) == set(types)

        def work() -> None:
            rows = self.cuda.array(logits, "float32", (batch, vocab_size))
            tables = {n: self.cuda.array(at[n], types[n], (batch,)) for n in types}
            drawn = [
                _drawn(rows[b], **{n: table[b].item() for n, table in tables.items()})
                for b in range(batch)
            ]
            self.cuda.array(token, "int64", (batch,))[:] = [t for t, _ in drawn]
            self.cuda.array(logprob, "float32", (batch,))[:] = [p for _, p in drawn]

        self.cuda.put("sample", work)


def _drawn(
    logits_V: np.ndarray, uniform: float, temperature: float, top_k: int, top_p: float, banned: int
) -> tuple[int, float]:
    """Token and log-probability, as sample.h and `base.Draw` define them."""
    if not np.isfinite(logits_V).all():
        return -1, float("nan")
    scores = logits_V.astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    order = order[order != banned]
    weights = np.exp(scores - scores.max())
    total = weights.sum()
    if temperature > 0:
        if top_k > 0:
            order = order[:top_k]
        shares = np.exp((scores[order] - scores[order[0]]) / temperature)
        if top_p < 1:
            cut = int(np.searchsorted(shares.cumsum(), top_p * shares.sum())) + 1
            order, shares = order[:cut], shares[:cut]
        by_index = np.argsort(order)
        sums = shares[by_index].cumsum()
        order = order[by_index][np.searchsorted(sums, uniform * sums[-1], side="right") :]
    token = int(order[0])
    return token, float(np.log(weights[token] / total))


def _codes(rows_KND: np.ndarray, kv_dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The nearest codes of each row, and its scale: the largest magnitude over the largest code."""
    largest = LARGEST_CODE[kv_dtype]
    top = np.abs(rows_KND).max(axis=-1)
    factor = np.divide(largest, top, out=np.zeros_like(top), where=top >= 2.0**-100)
    codes = rows_KND * factor[..., None]
    codes = np.rint(codes) if kv_dtype == "int8" else codes
    return codes.astype(np.dtype(kv_dtype)), top / largest


def _turned(key_KND: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    first, second = np.split(key_KND, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
