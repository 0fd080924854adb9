"""The native engine's side of `peers` (protocol: `peer_protocol`), and what only it can do.

    python -m benchmarks.peer_ours BUNDLE THREADS

Beside the common request: {"batches": [N, ...]} for steps of N sequences that share the prompt,
{"mass": true} for one that returns the visual mass and one that does not; the steps go through
these kinds forth and back, and each is forgotten again, so that all are of one length.
{"reinject": N} for the times of `kv` re-injections of N tokens behind the prompt.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peer_protocol import peak_rss_bytes, pin, serve, steps

NUM_VISUAL, FIRST_VISUAL = 256, 16
MAX_BATCH, MAX_LEN, REPEATS = 8, 2304, 20


class Worker:
    """Greedy decoding on NativeEngine, bf16 KV cache."""

    def __init__(self, bundle: Path, threads: int) -> None:
        import numpy as np

        from la_trt.engines.base import Step, VisualKeys
        from la_trt.engines.native import NativeEngine
        from la_trt.files.bundle import open_bundle

        self._np, self._step = np, Step
        self._engine = NativeEngine(
            open_bundle(bundle, verify=False),
            threads=threads,
            max_batch=MAX_BATCH,
            max_len=MAX_LEN,
            kv_dtype="bfloat16",
        )
        self._slots = [self._engine.alloc(MAX_LEN)]
        self._keys = VisualKeys(
            kv_index=np.arange(FIRST_VISUAL, FIRST_VISUAL + NUM_VISUAL),
            source=np.arange(NUM_VISUAL),
            num_visual=NUM_VISUAL,
        )

    def answer(
        self,
        *,
        ids: list[int],
        decode: int = 0,
        mass: bool = False,
        batches: Sequence[int] = (1,),
        reinject: int = 0,
    ) -> dict[str, Any]:
        while len(self._slots) < max(batches):
            self._slots.append(self._engine.alloc(MAX_LEN))
        first, *others = self._slots[: max(batches)]
        for slot in (first, *others):
            self._engine.truncate(slot, 0)
        for slot in others:
            self._forward([slot], [ids])
        if reinject:
            self._forward([first], [ids])
            return {"reinject_s": [self._reinject(reinject, len(ids)) for _ in range(REPEATS)]}
        kinds = list(itertools.product(batches, (True, False) if mass else (False,)))
        turns = itertools.cycle(kinds + kinds[::-1])

        def step(token: int) -> int:
            count, with_mass = next(turns)
            slots = self._slots[:count]
            following = self._forward(slots, [[token]] * count, with_mass)[0]
            for slot in slots if len(kinds) > 1 else ():
                self._engine.truncate(slot, len(ids))
            return following

        return steps(lambda prompt: self._forward([first], [prompt])[0], step, ids, decode)

    def _forward(self, slots: list[int], ids: list[list[int]], mass: bool = False) -> list[int]:
        np = self._np
        starts = [self._engine.length(slot) for slot in slots]
        positions = [np.arange(s, s + len(i)) for s, i in zip(starts, ids, strict=True)]
        out = self._engine.forward(
            self._step(
                slots=tuple(slots),
                cu_seqlens=np.cumsum([0, *map(len, ids)]),
                input_ids=np.concatenate(ids),
                position_ids=np.tile(np.concatenate(positions), (3, 1)),
                visual_keys=(self._keys,) * len(slots) if mass else (),
            )
        )
        assert np.isfinite(out.logits).all(), "logits are not finite"
        if mass:
            assert 0 < float(np.sum(out.visual_mass[0])) < 1, "mass is no share"
        return [int(token) for token in out.logits.argmax(axis=1)]

    def _reinject(self, count: int, context: int) -> float:
        source = self._np.arange(FIRST_VISUAL, FIRST_VISUAL + count)
        start = time.perf_counter()
        self._engine.kv_reinject(self._slots[0], source, context + 100)
        seconds = time.perf_counter() - start
        self._engine.truncate(self._slots[0], context)
        return seconds


def main() -> None:
    bundle, threads = Path(sys.argv[1]), int(sys.argv[2])
    pin(threads)
    serve(lambda: Worker(bundle, threads).answer, lambda: "la-trt native")


if __name__ == "__main__":
    assert peak_rss_bytes() > 0
    main()
