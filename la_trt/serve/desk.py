"""From an accepted request to its events: places, preparation, the engine, and leaving early."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np

from la_trt.api import LookAgain
from la_trt.batch import Request
from la_trt.errors import ImageError, InputError, LookAgainError
from la_trt.events import (
    DoneEvent,
    Event,
    ReflectionEvent,
    ReinjectEvent,
    Result,
    TokenEvent,
)
from la_trt.processor.types import Prompt
from la_trt.serve.errors import ApiError, from_known, unavailable
from la_trt.serve.images import ImageLoader
from la_trt.serve.loop import EngineLoop, Timed, stopped
from la_trt.serve.metrics import Metrics
from la_trt.serve.plan import Plan, check_text_length, check_unicode
from la_trt.serve.settings import ServeSettings
from la_trt.serve.vision import EmbeddingCache, Seen, VisionTower, image_digests

_PREPARING_THREADS = 2
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A prompt whose images have been seen, ready for the engine."""

    prompt: Prompt
    digests: tuple[bytes, ...]
    seen: Seen
    max_tokens: int


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One prompt's way through the engine."""

    plan: Plan
    prepared: Prepared
    request: Request
    arrived: float
    num_open: int
    inbox: asyncio.Queue[list[Timed] | ApiError] = field(default_factory=asyncio.Queue)
    ttft_s: float | None = None
    num_tokens: int = 0


class Desk:
    """Lets requests in, up to the limits, and runs them on the engine.

    A request holds a place from its headers on. Of those, only as many as the engine may soon
    run are prepared, in the order of their arrival: waiting requests hold no decoded images.
    """

    def __init__(self, model: LookAgain, settings: ServeSettings, metrics: Metrics) -> None:
        self.model = model
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        self.ended = False  # nothing starts on the engine any more
        self.max_len = model.engine.limits.max_len
        self._max_places = model.engine.limits.max_batch + settings.max_waiting
        self._places = 0
        self._turns = asyncio.Semaphore(2 * model.engine.limits.max_batch)
        self._jobs: set[Job] = set()
        self._images = ImageLoader(settings.images, model.processor.limits)
        self._tower = VisionTower(model.engine, EmbeddingCache(settings.vision_cache_bytes))
        self.loop = EngineLoop(
            model.session,
            self._tower,
            metrics,
            prefill_chunk=settings.prefill_chunk,
            prefix_cache=settings.prefix_cache,
        )
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, "prepare")
        self._fetching = ThreadPoolExecutor(2 * model.engine.limits.max_batch, "fetch")
        self._seeing = ThreadPoolExecutor(1, "vision")
        self._longest_token = _longest_token(model)
        metrics.watch_waiting(self._num_waiting)

    def start(self) -> None:
        """Start the engine's thread."""
        self.loop.start()

    @property
    def ready(self) -> bool:
        """Whether a request would be let in, were there a place."""
        return self.loop.alive and not self.draining

    @property
    def num_places_taken(self) -> int:
        """Requests that are waiting or running."""
        return self._places

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for one HTTP request. Raises ApiError 429 or 503."""
        if self.draining:
            raise stopped()
        if not self.loop.alive:
            raise unavailable("the server is not ready", "not_ready")
        if self._places >= self._max_places:
            raise ApiError(
                429,
                f"{self.settings.max_waiting} requests are waiting already",
                code="queue_full",
                retry_after_s=1,
            )
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """This request's turn to be prepared and run. Raises ApiError 503."""
        async with self._turns:
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self.ended:
            raise stopped()

    async def prepare_chat(
        self, messages: list[dict[str, object]], images: list[tuple[str, str]], plan: Plan
    ) -> Prepared:
        """Images loaded, prompt tokenised, images seen. Raises ApiError."""
        if len(images) > self.model.processor.limits.max_images:
            raise from_known(
                InputError(
                    f"images: {len(images)} given, at most "
                    f"{self.model.processor.limits.max_images} a request",
                    name="E_IMAGE_COUNT",
                )
            )
        loaded = [
            await self._in(self._fetching, partial(self._images.load, url, param))
            for url, param in images
        ]
        num_bytes = sum(_num_bytes(message["content"]) for message in messages)
        check_text_length(num_bytes, self._longest_token, self.max_len, "messages")

        def make() -> tuple[Prompt, tuple[bytes, ...]]:
            try:
                prompt = self.model.prompt(list(loaded), messages, max_tokens=plan.max_tokens or 1)
            except ImageError as error:
                raise from_known(error, images[error.index][1]) from None
            return prompt, image_digests(prompt)

        return await self._see(make, plan)

    async def prepare_text(self, given: str | list[int], plan: Plan, param: str) -> Prepared:
        """A bare text or token ids as a prompt. Raises ApiError."""
        size = len(given.encode("utf-8", "surrogatepass")) if isinstance(given, str) else 0
        check_text_length(size, self._longest_token, self.max_len, param)
        if isinstance(given, str):
            check_unicode(given, param)

        def make() -> tuple[Prompt, tuple[bytes, ...]]:
            return self._text_prompt(given, plan.max_tokens or 1, param), ()

        return await self._see(make, plan)

    async def _see(
        self, make: Callable[[], tuple[Prompt, tuple[bytes, ...]]], plan: Plan
    ) -> Prepared:
        prompt, digests = await self._in(self._preparing, make)
        max_tokens = plan.max_tokens or min(
            self.settings.default_max_tokens, self.model.room(prompt)
        )
        try:
            self.model.session.check(prompt, plan.options(max_tokens))
        except LookAgainError as error:
            raise from_known(error) from None
        if digests:
            seen = await self._in(self._seeing, lambda: self._tower.see(prompt, digests))
            self.metrics.mm_queries.inc(seen.num_images)
            self.metrics.mm_hits.inc(seen.num_reused)
            prompt = replace(prompt, pixel_values=prompt.pixel_values[:0].copy())
        else:
            seen = Seen(embeds=None, num_images=0, num_reused=0, ms=0.0)
        return Prepared(prompt=prompt, digests=digests, seen=seen, max_tokens=max_tokens)

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
        """The function's value, from a thread of `pool`. Raises ApiError."""
        try:
            value = asyncio.get_running_loop().run_in_executor(pool, function)
        except RuntimeError:  # the system has no thread left, or the server is closing
            raise unavailable("the server is out of threads for now", "overloaded") from None
        try:
            return await value
        except LookAgainError as error:
            raise from_known(error) from None
        except MemoryError:
            raise unavailable("the server is out of memory for now", "overloaded") from None

    def submit(self, plan: Plan, prepared: Prepared, arrived: float) -> Job:
        """Hand a prepared prompt to the engine; `drop` must follow, whatever happens.

        Raises ApiError 503.
        """
        self._check_open()
        request = Request(
            prompt=prepared.prompt,
            options=plan.options(prepared.max_tokens),
            first_index=0,
            visual_embeds=prepared.seen.embeds,
            vision_ms=prepared.seen.ms,
            image_digests=prepared.digests,
        )
        job = Job(plan=plan, prepared=prepared, request=request, arrived=arrived, num_open=plan.n)
        self.loop.submit(request, job.inbox.put_nowait, at_once=plan.stream)
        self._jobs.add(job)
        self.metrics.prompt_tokens.inc(len(prepared.prompt.input_ids))
        self.metrics.request_prompt.observe(len(prepared.prompt.input_ids))
        return job

    async def events(self, job: Job) -> AsyncIterator[tuple[int, Event]]:
        """(sample, event) as they come, to the last sample's end. Raises ApiError."""
        last: dict[int, float] = {}
        while job.num_open:
            events = await job.inbox.get()
            if isinstance(events, ApiError):
                raise events
            for when, event in events:
                sample = event.sequence - job.request.first_index
                self._note(job, sample, event, when, last)
                job.num_open -= isinstance(event, DoneEvent)
                yield sample, event

    def drop(self, job: Job) -> None:
        """Forget a job; what of it still runs leaves the engine."""
        self._jobs.discard(job)
        if job.num_open:
            self.loop.cancel(job.request.first_index)

    def _note(
        self, job: Job, sample: int, event: Event, now: float, last: dict[int, float]
    ) -> None:
        """Count an event in the metrics."""
        if isinstance(event, TokenEvent):
            job.num_tokens += 1
            if job.ttft_s is None:
                job.ttft_s = now - job.arrived
                self.metrics.ttft.observe(job.ttft_s)
            elif sample in last:
                self.metrics.inter_token.observe(now - last[sample])
            last[sample] = now
        elif isinstance(event, ReinjectEvent):
            self.metrics.reinjected(event)
        elif isinstance(event, ReflectionEvent):
            self.metrics.reflected(event, job.plan.policy_label)
        elif isinstance(event, DoneEvent):
            self.metrics.finished(event.result, queue_s(job, event.result))
            self.metrics.e2e.observe(now - job.arrived)

    def end_all(self) -> int:
        """End every request with a 503, now or when its turn comes; how many were running."""
        self.ended = True
        jobs = list(self._jobs)
        for job in jobs:
            self.loop.cancel(job.request.first_index)
            job.inbox.put_nowait(stopped())
        return len(jobs)

    def close(self) -> None:
        """Stop all threads."""
        self.loop.stop()
        for pool in (self._preparing, self._fetching, self._seeing):
            pool.shutdown(wait=False, cancel_futures=True)

    def _text_prompt(self, given: str | list[int], max_tokens: int, param: str) -> Prompt:
        vocabulary = self.model.processor.vocabulary
        if isinstance(given, str):
            ids = vocabulary.encode(given)
        else:
            controls, size = vocabulary.control_ids, len(vocabulary)
            if any(i >= size or i in controls for i in given):
                raise InputError(
                    f"{param}: ids must be below {size} and of no control token", name="E_PROMPT"
                )
            ids = list(given)
        if not ids:
            raise InputError(f"{param}: empty", name="E_PROMPT")
        if len(ids) + max_tokens > self.max_len:
            raise InputError(
                f"{param}: {len(ids)} tokens and max_tokens {max_tokens} exceed the "
                f"{self.max_len} of the context",
                name="E_CONTEXT_LENGTH",
            )
        return text_prompt(ids, self.model.processor.image_config.patch_dim)

    def _num_waiting(self) -> float:
        """Requests with a place none of whose sequences has started."""
        started = sum(job.request.next_sample > 0 for job in tuple(self._jobs))
        return max(self._places - started, 0)


def text_prompt(ids: list[int], patch_dim: int) -> Prompt:
    """A prompt of text tokens alone."""
    length = len(ids)
    return Prompt(
        text="",
        input_ids=np.array(ids, np.int64),
        visual_row=np.full(length, -1, np.int64),
        position_ids=np.tile(np.arange(length, dtype=np.int64), (3, 1)),
        pixel_values=np.zeros((0, patch_dim), np.float32),
        image_grid_thw=np.zeros((0, 3), np.int64),
        next_position=length,
    )


def queue_s(job: Job, result: Result) -> float:
    """Seconds to a job's first token that neither the vision tower nor the prefill took."""
    if job.ttft_s is None:
        return 0.0
    return max(job.ttft_s - (result.timing.prefill_ms + job.prepared.seen.ms) / 1e3, 0.0)


def _num_bytes(content: object) -> int:
    if isinstance(content, str):
        return len(content.encode("utf-8", "surrogatepass"))
    assert isinstance(content, list), "content: text or parts"
    return sum(_num_bytes(part["text"]) for part in content if part["type"] == "text")


def _longest_token(model: LookAgain) -> int:
    vocabulary = model.processor.vocabulary
    return max(len(vocabulary.token_bytes(i)) for i in range(len(vocabulary)))
