"""How the next token of a sequence is chosen: forced, drawn here from logits, or by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from la_trt.engines.base import Draw, Drawn, FloatArray
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt
from la_trt.sampling import Sampler, entropy_nats, log_partition
from la_trt.tags import TagIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A token with its log-probability at temperature 1; `top_logprobs` as in `TokenEvent`."""

    token: int
    logprob: float
    forced: bool = False
    top_logprobs: tuple[tuple[int, float], ...] = ()


class TokenChooser:
    """Chooses the tokens of sample number `sample` of a prompt.

    An engine that can draw is asked to (`request`) where the draw needs no more than it gets:
    temperature, top-k, top-p, one banned token. The whole logits are needed here for a repetition
    penalty, `top_logprobs`, a trigger by entropy, and the log-probability of a forced token.
    """

    def __init__(
        self, options: GenerationOptions, tags: TagIds, prompt: Prompt, sample: int
    ) -> None:
        self._options, self._tags = options, tags
        self._sampler = Sampler(options.sampling, prompt.input_ids, stream=sample)
        self._wants_entropy = options.policy.trigger.kind == "entropy"
        self.entropy_nats = 0.0  # of the last token's distribution, where a trigger wants it

    def request(self, tokens: Sequence[int]) -> Draw | None:
        """What to ask the engine for after `tokens`, None where the logits are needed.

        It takes a random number from the sequence's generator, as the draw here would.
        """
        on_host = (
            self._options.top_logprobs
            or self._options.sampling.repetition_penalty != 1.0
            or self._wants_entropy
            or self._forced(tokens) is not None
        )
        return None if on_host else self._sampler.request(self._banned())

    def take(self, drawn: Drawn) -> Choice | None:
        """What the engine drew; None where the logits were not all finite."""
        if drawn.token < 0:
            return None
        self._sampler.accept(drawn.token)
        return Choice(token=drawn.token, logprob=drawn.logprob)

    def choose(self, logits: FloatArray, tokens: Sequence[int]) -> Choice | None:
        """The token after `tokens` from logits (V,); None where they are not all finite."""
        if not np.isfinite(logits).all():
            return None
        if self._wants_entropy:
            self.entropy_nats = entropy_nats(logits)
        token = forced = self._forced(tokens)
        if token is None:
            token = self._sampler.draw(logits, banned=self._banned())
        self._sampler.accept(token)
        total = log_partition(logits)
        return Choice(
            token=token,
            logprob=float(logits[token]) - total,
            forced=forced is not None,
            top_logprobs=_best_tokens(logits, total, self._options.top_logprobs),
        )

    def _forced(self, tokens: Sequence[int]) -> int | None:
        step, tags = len(tokens), self._tags
        if step < len(self._options.forced):
            return int(self._options.forced[step])
        just_opened = bool(tokens) and tokens[-1] == tags.reflection_open
        if self._options.policy.close_at_once and just_opened:
            return tags.reflection_close
        return None

    def _banned(self) -> tuple[int, ...]:
        tag = self._tags.reflection_open
        return () if self._options.policy.allow_reflection or tag is None else (tag,)


def _best_tokens(logits: FloatArray, total: float, count: int) -> tuple[tuple[int, float], ...]:
    """(id, logprob) of the `count` most likely tokens, ties to the lower id."""
    if count == 0:
        return ()
    count = min(count, len(logits))
    threshold = np.partition(logits, len(logits) - count)[len(logits) - count]
    found = np.flatnonzero(logits >= threshold)
    order = found[np.argsort(-logits[found], kind="stable")][:count]
    return tuple((int(i), float(logits[i]) - total) for i in order)
