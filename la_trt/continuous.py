"""A thread that owns a session and answers whoever asks, several at a time.

For hosts that call from threads of their own and know no asyncio; the HTTP server has its own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from la_trt.batch import NotStarted, Request
from la_trt.errors import LookAgainError
from la_trt.events import DoneEvent, Event
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt
from la_trt.session import Session

log = logging.getLogger(__name__)
Deliver = Callable[[Event | LookAgainError], None]


@dataclass(slots=True, kw_only=True)
class _Client:
    request: Request
    deliver: Deliver
    cancelled: Callable[[], bool]


class Continuous:
    """Continuous batching over one session, which nobody else may use meanwhile."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._batch = session.open_batch()
        self._wake = threading.Condition()
        self._inbox: list[_Client] = []
        self._clients: dict[int, _Client] = {}
        self._next_index = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Prompt,
        options: GenerationOptions,
        deliver: Deliver,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Let a prompt join; its events, or one error, come to `deliver` on the engine's thread.

        `cancelled` is asked between the steps: once it is true, nothing more is delivered. Raises
        UsageError or InputError where the engine cannot answer that.
        """
        assert options.num_samples == 1, "one answer to a prompt"
        self._session.check(prompt, options)
        with self._wake:
            assert not self._closing, "submit after close"
            request = Request(prompt=prompt, options=options, first_index=self._next_index)
            self._next_index += 1
            self._inbox.append(_Client(request=request, deliver=deliver, cancelled=cancelled))
            self._wake.notify()

    def close(self) -> None:
        """Returns when everything that was submitted has been answered."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._batch.busy or self._closing):
                    self._wake.wait()
                arrived, self._inbox = self._inbox, []
                if self._closing and not arrived and not self._batch.busy:
                    break
            for client in arrived:
                self._clients[client.request.first_index] = client
                self._batch.add(client.request)
            self._drop_cancelled()
            if self._batch.busy:
                self._step()
        self._batch.close()

    def _drop_cancelled(self) -> None:
        for index, client in list(self._clients.items()):
            try:
                cancelled = client.cancelled()
            except Exception:
                log.exception("a client's `cancelled` failed, which ends its request")
                cancelled = True
            if cancelled:
                self._batch.cancel(index)
                del self._clients[index]

    def _step(self) -> None:
        try:
            events = self._batch.step()
        except NotStarted as lost:
            self._tell(lost.request.first_index, lost.error)
        except Exception as error:
            log.exception("the engine failed")
            with contextlib.suppress(Exception):  # of the same engine: nobody waits for its slots
                self._batch.close()
            if not isinstance(error, LookAgainError):
                error = LookAgainError(f"the engine failed: {type(error).__name__}")
            for index in list(self._clients):
                self._tell(index, error)
        else:
            for event in events:
                self._tell(event.sequence, event)

    def _tell(self, index: int, what: Event | LookAgainError) -> None:
        client = self._clients.get(index)
        if client is None:
            return
        if isinstance(what, DoneEvent | LookAgainError):
            del self._clients[index]
        try:
            client.deliver(what)
        except Exception:
            log.exception("a client's `deliver` failed, which ends its request")
            self._batch.cancel(index)
            self._clients.pop(index, None)
