"""What a session reports while it generates: token | reflection | reinject | done.

`Result.to_json` is the one published JSON object of `la-trt infer --json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

InjectKind = Literal["embed", "kv"]
SelectKind = Literal["all", "route", "random"]
FinishReason = Literal["stop", "length", "numerical_error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One generated (or forced) token. `text` is what became printable with it, maybe ''.

    `sequence` counts the sequences of the batch, `step` the generated tokens from 0.
    `logprob` is its log-probability under the model (temperature 1, before penalties).
    `top_logprobs`: (id, logprob) of the most likely tokens, best first, where asked for.
    """

    sequence: int
    step: int
    token_id: int
    text: str
    logprob: float
    forced: bool = False
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflectionEvent:
    """A reflection opened or closed at generated token `step`."""

    sequence: int
    step: int
    index: int
    opened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinjectEvent:
    """Visual tokens put into the context before token `step`, or why they were not.

    `selected` (num_tokens,) are source visual tokens in image order. `skipped` is '' when the
    injection took place, else the reason: 'no_room', 'max_reflections', 'no_visual_tokens'.
    """

    sequence: int
    step: int
    kind: InjectKind
    select: SelectKind
    num_tokens: int
    ms: float
    selected: NDArray[np.int64]
    skipped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one sequence; `prompt_tokens` includes `visual_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    visual_tokens: int
    reinjected_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds by stage. `tpot_ms` is the mean over decoded tokens after the first."""

    vision_ms: float
    prefill_ms: float
    ttft_ms: float
    decode_ms: float
    tpot_ms: float
    reinject_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The finished answer to one sequence.

    `step_masses` (num_steps, M) float32: the visual mass of each generated token that had a
    forward pass, in order; empty when mass is off. `conclusion` is the text inside the last
    CONCLUSION, or '' when there is none.
    """

    text: str
    conclusion: str
    finish_reason: FinishReason
    tokens: list[int]
    engine: str
    policy: str
    reinjections: list[ReinjectEvent]
    usage: Usage
    timing: Timing
    num_reflections: int = 0
    step_masses: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, 0), dtype=np.float32)
    )

    def to_json(self) -> dict[str, Any]:
        """The published object: plain JSON values only."""
        return {
            "text": self.text,
            "conclusion": self.conclusion,
            "finish_reason": self.finish_reason,
            "tokens": list(self.tokens),
            "engine": self.engine,
            "policy": self.policy,
            "reinjections": [
                {
                    "step": r.step,
                    "kind": r.kind,
                    "select": r.select,
                    "num_tokens": r.num_tokens,
                    "ms": round(r.ms, 3),
                    "skipped": r.skipped or False,
                    "selected": None if r.select == "all" else r.selected.tolist(),
                }
                for r in self.reinjections
            ],
            "usage": {name: getattr(self.usage, name) for name in Usage.__slots__},
            "timing": {name: round(getattr(self.timing, name), 3) for name in Timing.__slots__},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneEvent:
    """The last event of a sequence."""

    sequence: int
    result: Result


Event = TokenEvent | ReflectionEvent | ReinjectEvent | DoneEvent
