"""From logits to a token, in numpy: greedy, temperature, top-k, top-p, repetition penalty."""

from __future__ import annotations

import hashlib
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from la_trt.engines.base import Draw
from la_trt.errors import UsageError

_COLDEST = 1e-30  # a temperature whose inverse is a float32

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `repetition_penalty` divides the positive and multiplies the negative logits of every
    token of the prompt and of the answer so far. The order is penalty, temperature, top-k,
    top-p. The same `seed` gives the same tokens, in a batch or alone.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            whole = f.name in ("top_k", "seed")
            kinds = (int, np.integer) if whole else (int, float, np.number)
            # A Python integer is finite, and may be too large for a float.
            finite = isinstance(value, int) or (isinstance(value, kinds) and math.isfinite(value))
            if isinstance(value, bool) or not isinstance(value, kinds) or not finite:
                raise _refused(f.name, "an integer" if whole else "a finite number", value)
        if not 0 <= self.temperature <= 100:
            raise _refused("temperature", "a number from 0 to 100", self.temperature)
        if not 0 <= self.top_k < 1 << 31:
            raise _refused("top_k", "an integer from 0 to 2**31 - 1", self.top_k)
        if not 0 < self.top_p <= 1:
            raise _refused("top_p", "a number above 0 and at most 1", self.top_p)
        if not 0 < self.repetition_penalty <= 100:
            raise _refused("repetition_penalty", "a number above 0", self.repetition_penalty)
        if not 0 <= self.seed < 1 << 63:
            raise _refused("seed", "an integer from 0 to 2**63 - 1", self.seed)

    def own_stream(self, name: str) -> SamplingParams:
        """The same with a seed of its own for a question of that name, whatever else is asked."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode("utf-8", "surrogatepass")).digest()
        return replace(self, seed=int.from_bytes(digest[:8], "big") >> 1)


def _refused(field: str, expected: str, value: object) -> UsageError:
    return UsageError(f"{field}: expected {expected}, got {reprlib.repr(value)}", name="E_SAMPLING")


def log_partition(logits: FloatArray) -> float:
    """log(sum(exp(logits))) of finite logits (V,); a log-probability is logit minus this."""
    total = np.exp(_below_top(logits)).sum(dtype=np.float64)
    return float(logits.max()) + math.log(float(total))


def entropy_nats(logits: FloatArray) -> float:
    """The entropy of the distribution of finite logits (V,), at temperature 1."""
    shifted = _below_top(logits)
    weights = np.exp(shifted)
    total = float(weights.sum(dtype=np.float64))
    return math.log(total) - float((weights * shifted).sum(dtype=np.float64)) / total


def _below_top(logits: FloatArray) -> FloatArray:
    """Logits less their maximum, at least -200 (whose exponential is 0): never overflows."""
    top = logits.max()
    # Double precision costs some 1 ms at 150,000 entries, and only the absurd needs it.
    below = np.subtract(logits, top, dtype=np.float32 if abs(top) < 1e6 else np.float64)
    bounded: FloatArray = np.maximum(below, -200).astype(np.float32)
    return bounded


class Sampler:
    """Draws the tokens of one sequence; holds its generator and the tokens seen so far."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int] | NDArray[np.int64], stream: int = 0
    ) -> None:
        """`stream` tells samples of one prompt apart under one seed."""
        self._params = params
        self._rng = np.random.default_rng([int(params.seed), stream])
        self._seen: set[int] = set()
        if params.repetition_penalty != 1.0:
            self._seen.update(int(i) for i in prompt_ids)

    def draw(self, logits: FloatArray, *, banned: Sequence[int] = ()) -> int:
        """The next token id from finite logits (V,), never one of `banned`."""
        p = self._params
        if p.temperature == 0 and not self._seen and not len(banned):
            return int(logits.argmax())
        scores = logits.astype(np.float64)
        if self._seen:
            seen = np.fromiter(sorted(i for i in self._seen if i < len(scores)), np.int64)
            picked = scores[seen]
            scores[seen] = np.where(
                picked > 0, picked / p.repetition_penalty, picked * p.repetition_penalty
            )
        scores[list(banned)] = -np.inf
        if p.temperature == 0 or p.top_k == 1:
            return int(scores.argmax())
        with np.errstate(over="ignore"):  # -inf is what a tiny temperature makes of the rest
            return self._categorical((scores - scores.max()) / p.temperature)

    def request(self, banned: Sequence[int] = ()) -> Draw:
        """The same draw for an engine, from the same random number as `draw` would take.

        The token is the same but where the number lies within rounding (some 1e-7) of the border
        between two. There is no repetition penalty, and at most one token is banned.
        """
        p = self._params
        assert p.repetition_penalty == 1.0 and len(banned) < 2, "an engine cannot draw that"
        greedy = p.temperature == 0 or p.top_k == 1
        return Draw(
            temperature=0.0 if greedy else max(p.temperature, _COLDEST),
            top_k=p.top_k,
            top_p=p.top_p,
            uniform=0.0 if greedy else self._rng.random(),
            banned=banned[0] if len(banned) else -1,
        )

    def accept(self, token_id: int) -> None:
        """Note a token of the answer, drawn or forced."""
        if self._params.repetition_penalty != 1.0:
            self._seen.add(token_id)

    def _categorical(self, scores: NDArray[np.float64]) -> int:
        """A draw from scores (V,) whose maximum is 0."""
        candidates: IntArray | None = None
        if 0 < self._params.top_k < len(scores):
            candidates = _best(scores, self._params.top_k)
            scores = scores[candidates]
        probs = np.exp(scores.astype(np.float32)).astype(np.float64)
        if self._params.top_p < 1:
            kept = nucleus(probs / probs.sum(), self._params.top_p)
            candidates = kept if candidates is None else candidates[kept]
            probs = probs[kept]
        cumulative = probs.cumsum()
        drawn = self._rng.random() * cumulative[-1]
        index = int(np.searchsorted(cumulative, drawn, side="right"))
        if index >= len(probs):  # rounding at the very end: the last that is possible at all
            index = int(np.flatnonzero(probs)[-1])
        return index if candidates is None else int(candidates[index])


def _best(scores: NDArray[np.float64], count: int) -> IntArray:
    """Indices of the `count` largest scores in ascending order, ties to the lower index."""
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > threshold)
    ties = np.flatnonzero(scores == threshold)[: count - len(above)]
    return np.sort(np.concatenate([above, ties]))


def nucleus(probs: NDArray[np.float64], top_p: float) -> IntArray:
    """Indices (ascending) of the fewest most probable tokens whose sum reaches `top_p`.

    Ties go to the lower index; at least one is kept. Only as much is sorted as is needed.
    """
    count = min(256, len(probs))
    while True:
        best = _best(probs, count) if count < len(probs) else np.arange(len(probs))
        order = best[np.argsort(-probs[best], kind="stable")]
        cumulative = probs[order].cumsum()
        if cumulative[-1] >= top_p or count == len(probs):
            needed = int(np.searchsorted(cumulative, top_p, side="left")) + 1
            return np.sort(order[:needed])
        count = min(count * 8, len(probs))
