"""Kernels of the plugin library that run between two passes, called through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from la_trt.engines.tensorrt_library import PluginLibrary
from la_trt.errors import MachineError

_KV_TYPES = {"float16": 0, "bfloat16": 1, "int8": 2, "float8_e4m3fn": 3}


class KernelCalls:
    """The exported functions of a plugin library. Raises MachineError (E_PLUGIN, E_CUDA)."""

    def __init__(self, library: PluginLibrary) -> None:
        try:
            loaded = ctypes.CDLL(str(library.path.resolve()))
            self._kv_reinject = loaded.latrt_kv_reinject
            self._sample = loaded.latrt_sample
        except (OSError, AttributeError) as error:
            raise MachineError(
                f"{library.path}: not the plugin library of this la-trt ({error})\n"
                "build it again with make plugins",
                name="E_PLUGIN",
            ) from None
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._kv_reinject.argtypes = [pointer] * 7 + [number] * 8 + [pointer]
        self._sample.argtypes = [pointer] * 8 + [number] * 2 + [pointer]

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
        """Put the copies of one sequence's cached K and V into the stream; addresses are those of
        device memory, `keys` and `values` those of each layer's cache (B, K, C, D), `scales` those
        of key and value of each layer in turn, none where the cache has no codes.
        """
        count = len(keys)
        lists = (keys, values, scales[0::2], scales[1::2])
        tables = [(ctypes.c_void_p * count)(*some) if some else None for some in lists]
        status = self._kv_reinject(
            *tables, source_index, cos, sin, _KV_TYPES[kv_dtype], count, num_kv_heads, head_dim,
            capacity, slot, num_tokens, first, stream,
        )  # fmt: skip
        _check(status, "kv_reinject")

    def sample(
        self,
        logits: int,
        *,
        uniform: int,
        temperature: int,
        top_k: int,
        top_p: int,
        banned: int,
        token: int,
        logprob: int,
        batch: int,
        vocab_size: int,
        stream: int,
    ) -> None:
        """Put the choice of a token for each row of logits into the stream; see sample.h."""
        status = self._sample(
            logits, uniform, temperature, top_k, top_p, banned, token, logprob, batch, vocab_size,
            stream,
        )  # fmt: skip
        _check(status, "sample")


def _check(status: int, name: str) -> None:
    if status:
        raise MachineError(
            f"CUDA: the kernel {name} was not launched (error {status})\n"
            "check the driver with nvidia-smi",
            name="E_CUDA",
        )
