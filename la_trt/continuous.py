"""A thread that owns a session and answers whoever asks, several at a time.

For hosts that call from threads of their own and know no asyncio; the HTTP server has its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from la_trt.batch import Request
from la_trt.errors import LookAgainError
from la_trt.events import DoneEvent, Event
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt
from la_trt.session import Session

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
            if client.cancelled():
                self._batch.cancel(index)
                del self._clients[index]

    def _step(self) -> None:
        try:
            events = self._batch.step()
        except LookAgainError as error:
            known = self._batch.first_indices  # without the one that could not be started
            for index in [i for i in self._clients if i not in known]:
                self._clients.pop(index).deliver(error)
        except Exception as error:
            self._batch.close()
            clients, self._clients = self._clients, {}
            for client in clients.values():
                client.deliver(LookAgainError(f"the engine failed: {type(error).__name__}"))
        else:
            for event in events:
                self._hand_out(event)

    def _hand_out(self, event: Event) -> None:
        client = self._clients.get(event.sequence)
        if client is None:
            return
        if isinstance(event, DoneEvent):
            del self._clients[event.sequence]
        client.deliver(event)
