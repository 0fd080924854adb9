"""The state of one answer in the making: its KV slot's layout, its tokens, its text."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from la_trt.choice import TokenChooser
from la_trt.detokenize import TextStream
from la_trt.engines.base import Draw, Drawn, Engine, FloatArray
from la_trt.events import (
    Event,
    FinishReason,
    ReflectionEvent,
    ReinjectEvent,
    Result,
    Timing,
    TokenEvent,
    Usage,
)
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt
from la_trt.reattention.inject import (
    Chunk,
    VisualLayout,
    embed_copies,
    join,
    kv_copies,
    prompt_chunk,
    text_chunk,
)
from la_trt.reattention.select import num_selected, select_tokens
from la_trt.reattention.trigger import fires
from la_trt.speculate import NgramDrafter
from la_trt.tags import TagIds, TokenTable, conclusion


@dataclass(slots=True)
class Clock:
    """Milliseconds of the stages of one sequence; each engine step counts in one of them."""

    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    reinject_ms: float = 0.0

    def timing(self, num_tokens: int) -> Timing:
        """The published timing. `ttft_ms` is vision and prefill; all are engine-side."""
        first = self.vision_ms + self.prefill_ms
        after = self.decode_ms + self.reinject_ms
        return Timing(
            vision_ms=self.vision_ms,
            prefill_ms=self.prefill_ms,
            ttft_ms=first,
            decode_ms=self.decode_ms,
            tpot_ms=after / (num_tokens - 1) if num_tokens > 1 else 0.0,
            reinject_ms=self.reinject_ms,
            total_ms=first + after,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a sequence must know of the checkpoint's tokens."""

    tokenizer: TokenTable
    tags: TagIds
    eos_ids: frozenset[int]


class SequenceState:
    """One answer: knows what to forward next and what to make of the logits."""

    def __init__(
        self,
        *,
        index: int,
        sample: int,
        prompt: Prompt,
        options: GenerationOptions,
        vocabulary: Vocabulary,
        engine: Engine,
        slot: int,
        capacity: int,
        visual_embeds: FloatArray | None,
        drafter: NgramDrafter | None = None,
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.options = options
        self.visual_embeds = visual_embeds
        self.slot = slot
        self.queue: Chunk | None = prompt_chunk(prompt)
        self.clock = Clock()
        self.finish: FinishReason | None = None
        self._vocabulary = vocabulary
        self._engine = engine
        self._capacity = capacity
        self._drafter = drafter
        self._layout = VisualLayout(prompt)
        self._next_position = prompt.next_position
        self._chooser = TokenChooser(options, vocabulary.tags, prompt, sample)
        self._select_rng = np.random.default_rng([options.sampling.seed, sample, 1])
        self._stop_ids = frozenset(options.stop_token_ids)
        self._stream = TextStream(vocabulary.tokenizer, options.stop)
        self._tokens: list[int] = []
        self._masses: list[FloatArray] = []
        self._first_pass: FloatArray | None = None
        self._fired_at: int | None = None
        self._num_injected = 0
        self._reinjections: list[ReinjectEvent] = []
        self._reinject: ReinjectEvent | None = None  # of the pass under way
        self._open_reflections: list[int] = []
        self._num_reflections = 0

    # What goes into the next pass

    @property
    def in_prefill(self) -> bool:
        """Whether no token has been generated yet."""
        return not self._tokens

    @property
    def wants_mass(self) -> bool:
        """Whether the pass that ends the queue must return the visual mass."""
        policy = self.options.policy
        if not self._layout.num_visual:
            return False
        return policy.needs_mass or (self.options.masses and not self.in_prefill)

    @property
    def layout(self) -> VisualLayout:
        return self._layout

    def skip(self, num_cached: int) -> None:
        """Leave out the first tokens of the prompt, which the slot already holds."""
        if num_cached:
            assert self.queue is not None and 0 < num_cached < len(self.queue), "skip: all or none"
            _, self.queue = self.queue.split(num_cached)

    def prepare(self) -> None:
        """Fill the queue with the last token, after the visual tokens that go before it."""
        if self.queue is not None:
            return
        token, step = self._tokens[-1], len(self._tokens) - 1
        copies = None
        if self._fires(token, step):
            self._fired_at = step
            copies = self._inject(step)
        text = text_chunk(token, self._next_position)
        self._next_position += 1
        self.queue = text if copies is None else join(copies, text)

    def draft(self, count: int) -> list[Chunk]:
        """Up to `count` guesses of what follows the token just prepared, one chunk each.

        None before the first token, and none that `max_tokens` would not let be answered.
        """
        count = min(count, self.options.max_tokens - len(self._tokens) - 1)
        if self._drafter is None or self.in_prefill or count < 1:
            return []
        guesses = self._drafter.guess(self._tokens, count)
        return [text_chunk(g, self._next_position + j) for j, g in enumerate(guesses)]

    def follow(self, guess: int) -> bool:
        """Whether a guess that has run is the next token, with nothing to go in before it.

        If so it counts as prepared, and what its pass returned is to be accepted.
        """
        last, step = self._tokens[-1], len(self._tokens) - 1
        if self.finish is not None or last != guess or self._fires(last, step):
            return False
        self._next_position += 1
        return True

    def _fires(self, token: int, step: int) -> bool:
        return fires(
            self.options.policy.trigger,
            step=step,
            is_reflection=token == self._vocabulary.tags.reflection_open,
            entropy_nats=self._chooser.entropy_nats,
            steps_since_last=None if self._fired_at is None else step - self._fired_at,
        )

    def _inject(self, step: int) -> Chunk | None:
        """Put visual tokens in, or note why not. Returns the copies still to be forwarded."""
        started = time.perf_counter()
        policy, selected, skipped = self.options.policy, np.zeros(0, np.int64), self._obstacle()
        copies = None
        if not skipped:
            selected = select_tokens(
                policy.select,
                self._layout.num_visual,
                step_masses=self._masses,
                first_pass=self._first_pass,
                rng=self._select_rng,
            )
            self._num_injected += 1
            copies = self._place(selected)
        in_this_step = policy.inject == "kv" or bool(skipped)
        ms = (time.perf_counter() - started) * 1e3 if in_this_step else 0.0
        self._reinject = ReinjectEvent(
            sequence=self.index,
            step=step,
            kind=policy.inject,
            select=policy.select.kind,
            num_tokens=len(selected),
            ms=ms,
            selected=selected,
            skipped=skipped,
        )
        return copies

    def _obstacle(self) -> str:
        """Why nothing can be injected now, '' when it can.

        An injection must leave room for every token still promised by `max_tokens`.
        """
        policy = self.options.policy
        count = num_selected(policy.select, self._layout.num_visual)
        if count == 0:
            return "no_visual_tokens"
        if self._num_injected >= policy.max_reflections:
            return "max_reflections"
        promised = self.options.max_tokens - (len(self._tokens) - 1)
        if self._engine.length(self.slot) + count + promised > self._capacity:
            return "no_room"
        return ""

    def _place(self, selected: NDArray[np.int64]) -> Chunk | None:
        """Give the copies positions and KV places; run the `kv` ones at once."""
        config = self._engine.config
        merge, start = config.vision.spatial_merge_size, self._next_position
        kv_start = self._engine.length(self.slot)
        copies = None
        if self.options.policy.inject == "embed":
            copies, self._next_position = embed_copies(
                self.prompt,
                selected,
                start,
                image_token_id=config.image_token_id,
                merge_size=merge,
            )
        else:
            calls, self._next_position = kv_copies(
                self.prompt, self._layout, selected, start, merge_size=merge
            )
            for call in calls:
                self._engine.kv_reinject(self.slot, call.source_index, call.delta)
        self._layout.append(kv_start, selected)
        return copies

    # What comes out of it

    def spend(self, ms: float) -> None:
        """Count the time of one engine step in the stage this sequence is in."""
        event = self._reinject
        if self.in_prefill:
            self.clock.prefill_ms += ms
        elif event is None or event.skipped:
            self.clock.decode_ms += ms
        elif event.kind == "embed":
            self.clock.reinject_ms += ms
            self._reinject = replace(event, ms=event.ms + ms)
        else:
            self.clock.reinject_ms += event.ms
            self.clock.decode_ms += ms - event.ms

    def request_draw(self) -> Draw | None:
        """What the engine is to draw in the pass that ends the queue, None for its logits."""
        return self._chooser.request(self._tokens)

    def accept(self, got: FloatArray | Drawn, mass: FloatArray | None) -> list[Event]:
        """The events of a finished pass: its logits (V,), or what was drawn from them, become the
        next token.
        """
        events: list[Event] = []
        if self._reinject is not None:
            self._reinjections.append(self._reinject)
            events.append(self._reinject)
            self._reinject = None
        finite = mass is None or bool(np.isfinite(mass).all())
        if mass is not None:
            self._note_mass(mass)
        choice = None
        if finite and isinstance(got, Drawn):
            choice = self._chooser.take(got)
        elif finite and not isinstance(got, Drawn):
            choice = self._chooser.choose(got, self._tokens)
        if choice is None:
            self._stream.flush()
            self.finish = "numerical_error"
            return events
        self._tokens.append(choice.token)
        if self._drafter is not None:
            self._drafter.learn(self._tokens)
        events.append(
            TokenEvent(
                sequence=self.index,
                step=len(self._tokens) - 1,
                token_id=choice.token,
                text=self._advance_text(choice.token),
                logprob=choice.logprob,
                forced=choice.forced,
                top_logprobs=choice.top_logprobs,
            )
        )
        return events + self._reflection_events(choice.token)

    def _note_mass(self, mass: FloatArray) -> None:
        if self.in_prefill:
            self._first_pass = mass
        else:
            self._masses.append(mass)

    def _advance_text(self, token: int) -> str:
        """The text that became printable; decides whether the answer ends here."""
        ends = token in self._stop_ids or (
            token in self._vocabulary.eos_ids and not self.options.ignore_eos
        )
        text = "" if ends else self._stream.push(token)
        if ends or self._stream.stopped:
            self.finish = "stop"
        elif len(self._tokens) >= self.options.max_tokens:
            self.finish = "length"
        if self.finish is not None:
            text += self._stream.flush()
        if self._stream.stopped:
            self.finish = "stop"
        return text

    def _reflection_events(self, token: int) -> list[Event]:
        tags = self._vocabulary.tags
        step = len(self._tokens) - 1
        if token == tags.reflection_open:
            self._open_reflections.append(self._num_reflections)
            self._num_reflections += 1
        elif token != tags.reflection_close or not self._open_reflections:
            return []
        opened = token == tags.reflection_open
        index = self._open_reflections[-1] if opened else self._open_reflections.pop()
        return [ReflectionEvent(sequence=self.index, step=step, index=index, opened=opened)]

    def result(self) -> Result:
        """The finished answer."""
        assert self.finish is not None, "a result before the end"
        masses = np.zeros((0, 0), np.float32) if not self._masses else np.stack(self._masses)
        return Result(
            text=self._stream.text,
            conclusion=conclusion(self._stream.text),
            finish_reason=self.finish,
            tokens=list(self._tokens),
            engine=self._engine.limits.name,
            policy=self.options.policy.name,
            reinjections=list(self._reinjections),
            usage=Usage(
                prompt_tokens=len(self.prompt.input_ids),
                completion_tokens=len(self._tokens),
                visual_tokens=self._layout.num_visual,
                reinjected_tokens=sum(r.num_tokens for r in self._reinjections),
            ),
            timing=self.clock.timing(len(self._tokens)),
            num_reflections=self._num_reflections,
            step_masses=masses,
        )
