"""The thread that owns the engine: it takes requests in, steps the batch, and hands events out."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prometheus_client import Counter

from la_trt.batch import Batch, NotStarted, Request
from la_trt.errors import MachineError
from la_trt.events import DoneEvent, Event
from la_trt.serve.errors import ApiError, from_known, internal, unavailable
from la_trt.serve.logs import log
from la_trt.serve.metrics import Metrics
from la_trt.serve.prefix import PrefixSlots
from la_trt.serve.vision import VisionTower
from la_trt.session import Session

Timed = tuple[float, Event]  # seconds of time.monotonic, and what happened then
Deliver = Callable[["list[Timed] | ApiError"], None]
MAX_FAILURES = 3  # steps in a row, after which the engine counts as dead


@dataclass(slots=True)
class _Client:
    """Who gets the events of a request: each step's, or all of them at the end."""

    request: Request
    deliver: Deliver
    at_once: bool
    num_open: int  # samples that are not done
    ready: list[Timed] = field(default_factory=list)


class EngineLoop:
    """Continuous batching over one session.

    `submit` and `cancel` may be called from any thread. Events are delivered in the asyncio
    loop that `start` was called from: those of a step together, so that a stream flows, or
    those of a request together, so that an answer that is not streamed costs no waking up.
    """

    def __init__(
        self,
        session: Session,
        tower: VisionTower,
        metrics: Metrics,
        *,
        prefill_chunk: int,
        prefix_cache: bool,
    ) -> None:
        self._prefix = PrefixSlots(session.engine) if prefix_cache else None
        self._batch: Batch = session.open_batch(slots=self._prefix, prefill_chunk=prefill_chunk)
        self._step_lock = tower.step_lock
        self._metrics = metrics
        limits = session.engine.limits
        self._kv_positions = limits.max_batch * limits.max_len
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._clients: dict[int, _Client] = {}
        self._next_index = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drafter = session.drafter
        self._counted: dict[Counter, int] = {}
        self._num_failures = 0  # of steps since the last that went well

    def start(self) -> None:
        """Start the thread; events go to the running asyncio loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and its engine has not failed again and again."""
        return self._thread.is_alive() and self._num_failures < MAX_FAILURES

    def submit(self, request: Request, deliver: Deliver, *, at_once: bool) -> int:
        """Let a checked request join; returns its first sequence number, for `cancel`.

        `at_once`: deliver every step's events, not all of them at the end.
        """
        with self._wake:
            request.first_index = self._next_index
            self._next_index += request.options.num_samples
            self._inbox.append(lambda: self._join(request, deliver, at_once))
            self._wake.notify()
        return request.first_index

    def cancel(self, first_index: int) -> None:
        """Drop a request; its KV is free after the step that is under way."""
        with self._wake:
            self._inbox.append(lambda: self._drop(first_index))
            self._wake.notify()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread; what still runs gets no more events."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._batch.busy or self._stopping):
                    self._wake.wait()
                commands, self._inbox = self._inbox, []
                if self._stopping:
                    break
            for command in commands:
                command()
            if self._batch.busy:
                self._advance()
            self._measure()
        self._batch.close()
        if self._prefix is not None:
            self._prefix.clear()

    def _join(self, request: Request, deliver: Deliver, at_once: bool) -> None:
        client = _Client(request, deliver, at_once, request.options.num_samples)
        for index in range(request.first_index, request.first_index + client.num_open):
            self._clients[index] = client
        self._batch.add(request)

    def _drop(self, first_index: int) -> None:
        self._batch.cancel(first_index)
        client = self._clients.get(first_index)
        for index, other in list(self._clients.items()):
            if other is client or other.request.first_index == first_index:
                del self._clients[index]

    def _advance(self) -> None:
        try:
            with self._step_lock:
                events = self._batch.step()
        except NotStarted as lost:
            of_request = (c for c in self._clients.values() if c.request is lost.request)
            client = next(of_request)
            self._drop(lost.request.first_index)
            self._measure()
            self._post([(client.deliver, from_known(lost.error))])
        except Exception as error:
            log("engine_failed", level=logging.ERROR, exc_info=True)
            if isinstance(error, MachineError) and error.name == "E_MEMORY":
                self._fail_all(from_known(error))
            else:
                self._num_failures += 1
                self._fail_all(internal())
        else:
            self._num_failures = 0
            self._measure()  # before anybody can ask
            self._hand_out(events)

    def _fail_all(self, error: ApiError) -> None:
        clients = {id(c): c for c in self._clients.values()}.values()
        self._clients.clear()
        try:
            self._batch.close()
        except Exception:
            log("slots_lost", level=logging.ERROR, exc_info=True)
        self._measure()  # before anybody can ask
        self._post([(client.deliver, error) for client in clients])

    def _hand_out(self, events: Sequence[Event]) -> None:
        now = time.monotonic()
        touched: dict[int, _Client] = {}
        for event in events:
            client = self._clients.get(event.sequence)
            if client is None:
                continue
            client.ready.append((now, event))
            touched[client.request.first_index] = client
            if isinstance(event, DoneEvent):
                client.num_open -= 1
                del self._clients[event.sequence]
        deliveries: list[tuple[Deliver, list[Timed] | ApiError]] = []
        for client in touched.values():
            if client.at_once or not client.num_open:
                deliveries.append((client.deliver, client.ready))
                client.ready = []
        if deliveries:
            self._post(deliveries)

    def _post(self, deliveries: list[tuple[Deliver, list[Timed] | ApiError]]) -> None:
        def deliver_all() -> None:
            for deliver, what in deliveries:
                deliver(what)

        assert self._loop is not None, "EngineLoop.start was not called"
        try:
            self._loop.call_soon_threadsafe(deliver_all)
        except RuntimeError:  # the asyncio loop is closed: nobody listens any more
            self._stopping = True

    def _measure(self) -> None:
        self._metrics.running.set(self._batch.num_running)
        self._metrics.kv_usage.set(self._batch.kv_tokens / self._kv_positions)
        if self._prefix is not None:
            self._count(self._metrics.prefix_queries, self._prefix.num_queried)
            self._count(self._metrics.prefix_hits, self._prefix.num_reused)
        if self._drafter is not None:
            self._count(self._metrics.drafted, self._drafter.num_drafted)
            self._count(self._metrics.accepted, self._drafter.num_accepted)

    def _count(self, counter: Counter, total: int) -> None:
        """Let a counter of this loop's alone stand at `total`."""
        counter.inc(total - self._counted.get(counter, 0))
        self._counted[counter] = total


def stopped() -> ApiError:
    """What requests get that outlast the drain."""
    return unavailable("the server is shutting down", "draining")
