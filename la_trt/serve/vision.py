"""Visual embeddings beside the decoding, kept for images that come again."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from la_trt.engines.base import Engine, FloatArray, IntArray
from la_trt.processor.types import Prompt

# Engines whose vision tower shares nothing with `forward`, so that both may run at once.
_INDEPENDENT = ("native", "onnx", "torch", "mock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The images of a prompt: embeddings (M, E) or None without images, and what it took."""

    embeds: FloatArray | None
    num_images: int
    num_reused: int
    ms: float


class EmbeddingCache:
    """Embeddings by the digest of the pixels, the least recently used dropped. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[bytes, FloatArray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> FloatArray | None:
        """What is kept for an image, else None."""
        with self._lock:
            found = self._kept.get(digest)
            if found is not None:
                self._kept.move_to_end(digest)
            return found

    def put(self, digest: bytes, embeds: FloatArray) -> None:
        """Keep an image's embeddings, if they fit at all."""
        with self._lock:
            if embeds.nbytes > self._max_bytes or digest in self._kept:
                return
            self._kept[digest] = embeds
            self._bytes += embeds.nbytes
            while self._bytes > self._max_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.nbytes

    @property
    def num_bytes(self) -> int:
        """Bytes in use."""
        return self._bytes


def image_digests(prompt: Prompt) -> tuple[bytes, ...]:
    """One digest for each image: of its size in patches and of every pixel value."""
    return tuple(
        hashlib.sha256(grid.tobytes() + pixels.tobytes()).digest()
        for grid, pixels in _images(prompt)
    )


class VisionTower:
    """Runs the engine's vision tower, one image at a time; one thread may call it.

    `step_lock`: to be held by whoever calls `Engine.forward`, where an engine cannot do both
    at once; None where it can.
    """

    def __init__(self, engine: Engine, cache: EmbeddingCache) -> None:
        self._engine = engine
        self._cache = cache
        independent = engine.limits.name in _INDEPENDENT
        self.step_lock: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext() if independent else threading.Lock()
        )

    def see(self, prompt: Prompt, digests: tuple[bytes, ...]) -> Seen:
        """The embeddings of all images of a prompt, in order."""
        started = time.perf_counter()
        parts, num_reused = [], 0
        for (grid, pixels), digest in zip(_images(prompt), digests, strict=True):
            embeds = self._cache.get(digest)
            num_reused += embeds is not None
            if embeds is None:
                with self.step_lock:
                    embeds = self._engine.vision(np.ascontiguousarray(pixels), grid[None])
                self._cache.put(digest, embeds)
            parts.append(embeds)
        return Seen(
            embeds=parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else None,
            num_images=len(parts),
            num_reused=num_reused,
            ms=(time.perf_counter() - started) * 1e3,
        )


def _images(prompt: Prompt) -> list[tuple[IntArray, FloatArray]]:
    """(grid (3,), pixel values (P, patch_dim)) of each image."""
    ends = np.cumsum(prompt.image_grid_thw.prod(axis=1))
    starts = ends - prompt.image_grid_thw.prod(axis=1)
    return [
        (grid, prompt.pixel_values[start:end])
        for grid, start, end in zip(prompt.image_grid_thw, starts, ends, strict=True)
    ]
