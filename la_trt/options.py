"""What a caller may ask of one generation."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from la_trt.errors import UsageError
from la_trt.limits import DEFAULT_MAX_TOKENS, Limits
from la_trt.reattention.policy import Policy, preset
from la_trt.sampling import SamplingParams


def _default_policy() -> Policy:
    return preset("copy")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How to answer one prompt.

    `stop`: strings that end the answer and are not part of it. `stop_token_ids`: ids that
    end it, besides the checkpoint's own end tokens (`ignore_eos` disregards those).
    `num_samples`: answers to the same prompt, with one run of the vision tower; sample j
    draws from stream j of the seed. `forced`: ids that the answer begins with, in place of
    sampled ones; they count as generated, so a forced `<REFLECTION>` triggers.
    `masses`: fill `Result.step_masses` even if the policy has no need of them.
    `top_logprobs`: how many of the most likely tokens each `TokenEvent` names.
    """

    policy: Policy = field(default_factory=_default_policy)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_samples: int = 1
    forced: tuple[int, ...] = ()
    masses: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "num_samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _refused(name, "an integer >= 1", value)
        if isinstance(self.stop, str) or not all(isinstance(s, str) for s in self.stop):
            raise _refused("stop", "a sequence of strings", self.stop)
        for name in ("stop_token_ids", "forced"):
            ids: Sequence[object] = getattr(self, name)
            if not all(isinstance(i, (int, np.integer)) and i >= 0 for i in ids):
                raise _refused(name, "token ids >= 0", ids)

    @property
    def needs_mass(self) -> bool:
        """Whether the engine has to return the visual mass for this generation."""
        return self.policy.needs_mass or self.masses

    def check(self, limits: Limits) -> None:
        """Raise UsageError where the options exceed the published limits."""
        if len(self.stop) > limits.max_stop_strings:
            raise _refused("stop", f"at most {limits.max_stop_strings} strings", len(self.stop))
        for text in self.stop:
            if not 0 < len(text) <= limits.max_stop_length:
                raise _refused(
                    "stop", f"strings of 1 to {limits.max_stop_length} characters", len(text)
                )


def _refused(field_name: str, expected: str, value: object) -> UsageError:
    shown = reprlib.repr(value)
    return UsageError(f"{field_name}: expected {expected}, got {shown}", name="E_OPTION")
