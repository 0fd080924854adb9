"""The running batch: sequences join and leave between the steps of one engine."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from la_trt.engines.base import Draw, Engine, FloatArray, Step, StepOutput, VisualKeys
from la_trt.errors import LookAgainError, MachineError
from la_trt.events import DoneEvent, Event
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt
from la_trt.reattention.inject import Chunk
from la_trt.reattention.select import num_selected
from la_trt.sequence import SequenceState, Vocabulary
from la_trt.speculate import NgramDrafter

DEFAULT_PREFILL_CHUNK = 512


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A prompt and its samples, which are the sequences first_index, first_index + 1, ...

    `visual_embeds` (M, E): None lets the vision tower run at the first sample; else
    `vision_ms` is what they took.
    `image_digests`: what tells the images of the prompt apart, one each, where the slots of
    the batch keep prefixes; else empty.
    """

    prompt: Prompt
    options: GenerationOptions
    first_index: int
    visual_embeds: FloatArray | None = None
    vision_ms: float = 0.0
    image_digests: tuple[bytes, ...] = ()
    next_sample: int = 0
    num_cached: int = 0  # prompt tokens that the slots of its samples already held


class NotStarted(Exception):
    """A request that could not begin, `error` says why; all others of the batch go on."""

    def __init__(self, request: Request, error: LookAgainError) -> None:
        super().__init__(str(error))
        self.request = request
        self.error = error


class Slots(Protocol):
    """Where the sequences of a batch get their KV slots from."""

    def acquire(self, request: Request, capacity: int) -> tuple[int, int]:
        """A slot for `capacity` tokens, and how many tokens of the prompt it already holds.

        Fewer than all of them: the last one has to run. Raises MachineError when none is left.
        """
        ...

    def release(self, slot: int, request: Request, *, finished: bool) -> None:
        """Take a slot back; `finished` says that it holds the whole prompt, in order."""
        ...


class PlainSlots:
    """A fresh slot of the engine for every sequence."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def acquire(self, request: Request, capacity: int) -> tuple[int, int]:
        """An empty slot."""
        return self._engine.alloc(capacity), 0

    def release(self, slot: int, request: Request, *, finished: bool) -> None:
        """Give the slot back to the engine."""
        self._engine.free(slot)


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens of one sequence in a step; `ends`: what the last of them returns is its next token.

    `guess`: the token that it is, where it was guessed and not yet said.
    """

    state: SequenceState
    chunk: Chunk
    ends: bool
    guess: int | None = None


class Batch:
    """Sequences of one engine, advanced together. Not thread-safe.

    Requests start in the order in which they were added, one sample of each in turn. A
    sequence that decodes gets one token a step, or more where `drafter` guessed them; those
    still in their prompts share `prefill_chunk` tokens: a quarter evenly, the rest the shortest
    first.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        *,
        prefill_chunk: int = DEFAULT_PREFILL_CHUNK,
        slots: Slots | None = None,
        drafter: NgramDrafter | None = None,
    ) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._prefill_chunk = prefill_chunk
        self._slots = slots or PlainSlots(engine)
        self._drafter = drafter if engine.limits.draft_rows else None
        self._waiting: deque[Request] = deque()
        self._active: list[SequenceState] = []
        self._requests: dict[int, Request] = {}

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._active)

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return len(self._active)

    @property
    def kv_tokens(self) -> int:
        """KV positions that the running sequences use."""
        return sum(self._engine.length(state.slot) for state in self._active)

    def add(self, request: Request) -> None:
        """Let a request wait for its slots; it must have passed `Session.check`."""
        self._waiting.append(request)

    def step(self) -> list[Event]:
        """The events of one engine step, after which finished sequences have left.

        Raises NotStarted where a request cannot begin, as when not even a sequence alone gets a
        slot: that request is gone. After any other exception, which is the engine's, no
        sequence may go on: `close`.
        """
        self._admit()
        if not self._active:
            return []
        events = self._advance()
        for state in [s for s in self._active if s.finish is not None]:
            self._leave(state, finished=state.finish != "numerical_error")
            events.append(DoneEvent(sequence=state.index, result=state.result()))
        return events

    def cancel(self, first_index: int) -> None:
        """Drop all samples of a request, the running ones too; unknown ones are fine."""
        for request in [r for r in self._waiting if r.first_index == first_index]:
            self._waiting.remove(request)
        for state in list(self._active):
            if self._requests[state.index].first_index == first_index:
                self._leave(state, finished=False)

    def close(self) -> None:
        """Drop everything; every slot goes back, or as many as the engine takes."""
        self._waiting.clear()
        with contextlib.ExitStack() as leaving:  # all of them, whatever one raises
            for state in self._active:
                leaving.callback(self._leave, state, finished=False)

    def _leave(self, state: SequenceState, *, finished: bool) -> None:
        self._active.remove(state)
        self._slots.release(state.slot, self._requests.pop(state.index), finished=finished)

    def _admit(self) -> None:
        """Start waiting sequences while the engine has room for them."""
        while self._waiting and len(self._active) < self._engine.limits.max_batch:
            request = self._waiting[0]
            capacity = self._capacity(request)
            try:
                slot, num_cached = self._slots.acquire(request, capacity)
            except MachineError as error:
                if self._active:
                    return
                self._waiting.popleft()
                raise NotStarted(request, error) from error
            try:
                state = self._start(request, slot, capacity)
            except BaseException as error:
                self._waiting.popleft()
                self._slots.release(slot, request, finished=False)
                if not isinstance(error, LookAgainError):
                    raise
                self.cancel(request.first_index)
                raise NotStarted(request, error) from error
            state.skip(num_cached)
            request.num_cached += num_cached
            self._active.append(state)
            self._requests[state.index] = request
            request.next_sample += 1
            self._waiting.popleft()
            if request.next_sample < request.options.num_samples:
                self._waiting.append(request)

    def _start(self, request: Request, slot: int, capacity: int) -> SequenceState:
        prompt, vision_ms = request.prompt, 0.0 if request.next_sample else request.vision_ms
        if request.visual_embeds is None and prompt.num_visual:
            started = time.perf_counter()
            request.visual_embeds = self._engine.vision(prompt.pixel_values, prompt.image_grid_thw)
            vision_ms = (time.perf_counter() - started) * 1e3
        state = SequenceState(
            index=request.first_index + request.next_sample,
            sample=request.next_sample,
            prompt=prompt,
            options=request.options,
            vocabulary=self._vocabulary,
            engine=self._engine,
            slot=slot,
            capacity=capacity,
            visual_embeds=request.visual_embeds,
            drafter=self._drafter,
        )
        state.clock.vision_ms = vision_ms
        return state

    def _capacity(self, request: Request) -> int:
        """KV positions for the prompt, `max_tokens`, and as many injections as may come."""
        options, policy = request.options, request.options.policy
        needed = len(request.prompt.input_ids) + options.max_tokens
        if policy.injects:
            per_injection = num_selected(policy.select, request.prompt.num_visual)
            needed += per_injection * min(policy.max_reflections, options.max_tokens)
        return min(needed, self._engine.limits.max_len)

    def _advance(self) -> list[Event]:
        """One engine step; returns the events of the sequences that got tokens."""
        started = time.perf_counter()
        for state in self._active:
            state.prepare()
        parts = self._with_guesses(self._take())
        output = self._engine.forward(_pack(parts, self._draws(parts)))
        ms = (time.perf_counter() - started) * 1e3
        for state in self._active:
            state.spend(ms)
        return self._accept(parts, output)

    def _accept(self, parts: Sequence[_Part], output: StepOutput) -> list[Event]:
        """The events of a step; what ran for guesses that were wrong is forgotten."""
        events: list[Event] = []
        guessed: Counter[int] = Counter()  # by slot
        wrong: Counter[int] = Counter()
        for b, part in enumerate(parts):
            state = part.state
            guessed[state.slot] += part.guess is not None
            if part.guess is not None and (wrong[state.slot] or not state.follow(part.guess)):
                wrong[state.slot] += 1
            elif part.ends:
                mass = output.visual_mass[b] if output.visual_mass else None
                drawn = output.drawn[b] if output.drawn else None
                got = output.logits[b] if drawn is None else drawn
                events += state.accept(got, mass if state.wants_mass else None)
        for slot, count in guessed.items():
            if count and self._drafter is not None:
                self._drafter.count(count, count - wrong[slot])
            if wrong[slot]:
                self._engine.truncate(slot, self._engine.length(slot) - wrong[slot])
        return events

    def _draws(self, parts: Sequence[_Part]) -> tuple[Draw | None, ...]:
        """The tokens that the engine is to draw; none at all where it cannot."""
        if not self._engine.limits.supports_draw:
            return ()
        return tuple(part.state.request_draw() if part.ends else None for part in parts)

    def _take(self) -> list[_Part]:
        """What each sequence contributes to this step, taken off its queue."""
        sizes = []
        for state in self._active:
            assert state.queue is not None, "a sequence with nothing to forward"
            sizes.append(len(state.queue))
        parts = []
        for state, size in zip(self._active, _shares(sizes, self._prefill_chunk), strict=True):
            if size:
                assert state.queue is not None
                chunk, rest = state.queue.split(size)
                state.queue = rest if len(rest) else None
                parts.append(_Part(state, chunk, ends=state.queue is None))
        return parts

    def _with_guesses(self, parts: Sequence[_Part]) -> list[_Part]:
        """The parts, each that ends a queue with what may follow it, while rows cost little."""
        if self._drafter is None:
            return list(parts)
        room = self._engine.limits.draft_rows - len(parts)
        found = []
        for rank, part in enumerate(parts):
            found.append(part)
            share = -(-max(room, 0) // (len(parts) - rank))
            guesses = part.state.draft(min(share, self._drafter.num_tokens)) if part.ends else []
            room -= len(guesses)
            found += [
                _Part(part.state, chunk, ends=True, guess=int(chunk.input_ids[0]))
                for chunk in guesses
            ]
        return found


def _shares(sizes: Sequence[int], budget: int) -> list[int]:
    """How much of each queue runs: single tokens whole, the others shares of `budget`.

    A quarter of it is shared evenly, so that no prompt ever stands still; the rest goes to the
    shortest queues first, which ends most of them soonest (shortest remaining time first).
    """
    shares = [min(size, 1) if size <= 1 else 0 for size in sizes]
    long = sorted((i for i, size in enumerate(sizes) if size > 1), key=lambda i: sizes[i])
    even = min(budget, max(budget // 4, len(long)))
    budget -= even
    for rank, i in enumerate(long):
        shares[i] = min(sizes[i], -(-even // (len(long) - rank)))
        even -= shares[i]
    budget += even
    for i in long:
        more = min(sizes[i] - shares[i], budget)
        shares[i] += more
        budget -= more
    return shares


def _pack(parts: Sequence[_Part], draws: tuple[Draw | None, ...]) -> Step:
    """One packed step of the parts; the mass is asked for only where a queue ends."""
    offsets: dict[int, int] = {}
    tables: list[FloatArray] = []
    rows = []
    for part in parts:
        row = part.chunk.visual_row
        if (row >= 0).any():
            table = part.state.visual_embeds
            assert table is not None, "visual rows without visual embeddings"
            if id(table) not in offsets:
                offsets[id(table)] = sum(len(t) for t in tables)
                tables.append(table)
            row = np.where(row >= 0, row + offsets[id(table)], -1)
        rows.append(row)
    keys: tuple[VisualKeys | None, ...] = tuple(
        part.state.layout.keys() if part.ends and part.state.wants_mass else None for part in parts
    )
    chunks = [part.chunk for part in parts]
    return Step(
        slots=tuple(part.state.slot for part in parts),
        cu_seqlens=np.cumsum([0, *(len(chunk) for chunk in chunks)], dtype=np.int64),
        input_ids=np.concatenate([chunk.input_ids for chunk in chunks]),
        position_ids=np.ascontiguousarray(
            np.concatenate([chunk.position_ids for chunk in chunks], axis=1)
        ),
        visual_row=np.concatenate(rows) if tables else None,
        visual_embeds=None
        if not tables
        else tables[0]
        if len(tables) == 1
        else np.concatenate(tables),
        visual_keys=keys if any(k is not None for k in keys) else (),
        draws=draws,
    )
