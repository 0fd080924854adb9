"""The loop: prefill, decode, look again, over packed batches of sequences.

A session drives one engine. It knows policies and tags; the engine knows neither.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence

from la_trt.batch import DEFAULT_PREFILL_CHUNK, Batch, NotStarted, Request, Slots
from la_trt.engines.base import Engine
from la_trt.errors import InputError, UsageError
from la_trt.events import DoneEvent, Event, Result
from la_trt.limits import MAX_SPECULATE, Limits
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt
from la_trt.sequence import Vocabulary
from la_trt.speculate import NgramDrafter
from la_trt.tags import TagIds, TokenTable

__all__ = ["DEFAULT_PREFILL_CHUNK", "GenerationOptions", "Session"]


class Session:
    """Generates from prompts with one engine. Not thread-safe, as the engine is not.

    `eos_token_ids`: what ends an answer, by default the model config's. `prefill_chunk`:
    the most tokens of one sequence, and about the most of a whole batch, in one forward
    pass; longer prompts and injections run in several. `speculate`: tokens guessed ahead in a
    step, which changes no answer (`NgramDrafter`); UserWarning where the engine takes no guesses.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: TokenTable,
        *,
        eos_token_ids: Iterable[int] | None = None,
        prefill_chunk: int = DEFAULT_PREFILL_CHUNK,
        limits: Limits | None = None,
        speculate: int = 0,
    ) -> None:
        if prefill_chunk < 1:
            raise UsageError(f"prefill_chunk: expected at least 1, got {prefill_chunk}")
        if not isinstance(speculate, int) or not 0 <= speculate <= MAX_SPECULATE:
            raise UsageError(f"speculate: expected 0 to {MAX_SPECULATE} tokens, got {speculate!r}")
        self.engine = engine
        self.tags = TagIds.resolve(tokenizer)
        self._prefill_chunk = prefill_chunk
        self._limits = limits or Limits()
        self.drafter = NgramDrafter(speculate) if speculate else None
        if speculate and not engine.limits.draft_rows:
            name = engine.limits.name
            warnings.warn(
                f"speculate has no effect: engine {name!r} takes no guesses", stacklevel=3
            )
        self._turns, self._process = threading.RLock(), os.getpid()
        eos = engine.config.eos_token_ids if eos_token_ids is None else eos_token_ids
        self._vocabulary = Vocabulary(
            tokenizer=tokenizer, tags=self.tags, eos_ids=frozenset(int(i) for i in eos)
        )

    def generate(self, prompt: Prompt, options: GenerationOptions | None = None) -> Result:
        """The finished answer to one prompt (the first one if `num_samples` asks for more)."""
        return self.results([prompt], options)[0]

    def stream(self, prompt: Prompt, options: GenerationOptions | None = None) -> Iterator[Event]:
        """The events of the answer to one prompt."""
        return self.generate_batch([prompt], options)

    def results(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions | Sequence[GenerationOptions] | None = None,
    ) -> list[Result]:
        """All answers: those to prompt 0 (`num_samples` of them), those to prompt 1, ..."""
        done = [e for e in self.generate_batch(prompts, options) if isinstance(e, DoneEvent)]
        return [e.result for e in sorted(done, key=lambda e: e.sequence)]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions | Sequence[GenerationOptions] | None = None,
    ) -> Iterator[Event]:
        """The events of all answers as they come, several sequences in each engine step.

        `options` is for all prompts, or one for each. Sequence numbers count the samples of
        prompt 0, then those of prompt 1, and so on. An answer never depends on the others.
        Everything is checked before the first step: UsageError, InputError
        E_CONTEXT_LENGTH. Closing the iterator early frees the KV slots.
        """
        if options is None:
            options = GenerationOptions()
        if isinstance(options, GenerationOptions):
            options = [options] * len(prompts)
        if len(options) != len(prompts):
            raise UsageError(f"options: expected {len(prompts)}, one a prompt, got {len(options)}")
        requests, index = [], 0
        for prompt, option in zip(prompts, options, strict=True):
            self.check(prompt, option)
            self._warn(option)
            requests.append(Request(prompt=prompt, options=option, first_index=index))
            index += option.num_samples
        return self._run(requests)

    def check(self, prompt: Prompt, options: GenerationOptions) -> None:
        """Nothing; raises UsageError or InputError where the engine cannot answer that."""
        options.check(self._limits)
        limits, policy = self.engine.limits, options.policy
        length = len(prompt.input_ids)
        if length == 0:
            raise InputError("prompt: no tokens", name="E_PROMPT")
        if length + options.max_tokens > limits.max_len:
            raise InputError(
                f"context length: prompt of {length} tokens and max_tokens {options.max_tokens} "
                f"exceed {limits.max_len}\nuse a smaller image, a shorter prompt or fewer tokens",
                name="E_CONTEXT_LENGTH",
            )
        if policy.injects and policy.inject == "kv" and not limits.supports_kv_reinject:
            raise UsageError(
                f"inject: engine {limits.name!r} cannot re-inject cached keys\nuse inject embed",
                name="E_INJECT",
            )
        vocab_size = self.engine.config.text.vocab_size
        if any(i >= vocab_size for i in options.forced):
            raise UsageError(f"forced: token ids must be below {vocab_size}", name="E_OPTION")

    def _warn(self, options: GenerationOptions) -> None:
        policy = options.policy
        if policy.trigger.kind == "reflection" and self.tags.reflection_open is None:
            warnings.warn(
                f"policy {policy.name!r} never looks again: the checkpoint has no "
                "<REFLECTION> token",
                stacklevel=4,
            )

    def open_batch(self, *, slots: Slots | None = None, prefill_chunk: int | None = None) -> Batch:
        """An empty running batch on this session's engine; only one may run at a time."""
        return Batch(
            self.engine,
            self._vocabulary,
            prefill_chunk=prefill_chunk or self._prefill_chunk,
            slots=slots,
            drafter=self.drafter,
        )

    def _run(self, requests: Sequence[Request]) -> Iterator[Event]:
        batch = self.open_batch()
        try:
            for request in requests:
                batch.add(request)
            while batch.busy:
                with self._turn():
                    events = batch.step()
                yield from events
        except NotStarted as lost:
            raise lost.error from None
        finally:
            with self._turn():
                batch.close()

    def _turn(self) -> contextlib.AbstractContextManager[object]:
        """What a thread holds while the engine works for it."""
        if self._process != os.getpid():  # a fork leaves behind whoever held it
            self._turns, self._process = threading.RLock(), os.getpid()
        return self._turns
