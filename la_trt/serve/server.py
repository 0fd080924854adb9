"""The server's life: bind, load the model while answering 503, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from la_trt.api import LookAgain
from la_trt.errors import MachineError
from la_trt.serve.app import Service, make_app
from la_trt.serve.desk import Desk
from la_trt.serve.logs import log
from la_trt.serve.metrics import Metrics
from la_trt.serve.protocol import protocol_with
from la_trt.serve.settings import ServeSettings

_POLL_S = 0.05
_REPORT_S = 1.0  # between two lines about failures of the asyncio loop
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_HEADROOM = 4  # headers up to this many times the limit still get a 431 with a request id


class Server(uvicorn.Server):
    """Serves one model. `run` returns after a drain; `stop` asks for one from any thread.

    `load` runs in a thread of its own; what it raises, `run` raises. Raises MachineError
    E_PORT where the address cannot be bound, E_DRAIN where requests were cut off.
    """

    def __init__(self, settings: ServeSettings, load: Callable[[], LookAgain]) -> None:
        self.settings = settings
        self.service = Service(settings)
        self.interrupted = False
        self.loaded = threading.Event()
        self._load = load
        self._loader: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._num_stops = 0
        self._num_cut_off = 0
        self._next_report = 0.0
        self._socket = _bind(settings)
        http = settings.http
        super().__init__(
            uvicorn.Config(
                make_app(self.service),
                http=protocol_with(http),
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=1024,
                timeout_keep_alive=int(http.keep_alive_s),
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=_HEADROOM * http.max_header_bytes,
            )
        )

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._socket.getsockname()[1])

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until stopped."""
        try:
            super().run([self._socket])
        finally:
            self._socket.close()
            if self.service.desk is not None:
                self.service.desk.close()
        if self._failure is not None:
            raise self._failure
        if self._num_cut_off:
            raise MachineError(
                f"{self._num_cut_off} requests were cut off when the server stopped\n"
                "give them more time with --drain-seconds",
                name="E_DRAIN",
            )

    @property
    def loading(self) -> bool:
        """Whether the model is still being loaded, perhaps for a server that has ended."""
        return self._loader is not None and self._loader.is_alive()

    def stop(self) -> None:
        """Let no more requests in and end when the last is answered; the second time at once."""
        self._num_stops += 1

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal's part of `stop`."""
        self.interrupted = self.interrupted or sig == signal.SIGINT
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT drain, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to load the model."""
        asyncio.get_running_loop().set_exception_handler(self._loop_failed)
        await super().startup(sockets)
        self._tasks = [
            asyncio.create_task(self._load_model()),
            asyncio.create_task(self._wait_for_stop()),
        ]
        log("listening", host=self.settings.host, port=self.port)

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A line of the log; asyncio's own are tracebacks and name addresses.

        Without descriptors there would be thousands a second, so there is one.
        """
        if loop.time() < self._next_report:
            return
        self._next_report = loop.time() + _REPORT_S
        error = context.get("exception")
        full = isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS
        event = "out_of_descriptors" if full else "loop_failed"
        log(event, level=logging.ERROR, exc_info=error)

    async def _load_model(self) -> None:
        try:
            model = await self._loading()
            desk = Desk(model, self.settings, Metrics(self.settings.model_name))
            desk.start()
        except asyncio.CancelledError:  # stopped meanwhile
            raise
        except BaseException as error:
            self._failure = error
            self.should_exit = True
        else:
            self.service.desk = desk
            limits = model.engine.limits
            log("ready", model=self.settings.model_name, engine=limits.name, dtype=limits.dtype)
        finally:
            self.loaded.set()

    def _loading(self) -> asyncio.Future[LookAgain]:
        """The model, loaded in a thread that nobody waits for once the server is stopped."""
        loop = asyncio.get_running_loop()
        model: asyncio.Future[LookAgain] = loop.create_future()

        def settle(set_it: Callable[[Any], None], what: Any) -> None:
            if not model.done():
                set_it(what)

        def load() -> None:
            outcome: tuple[Callable[[Any], None], Any]
            try:
                outcome = model.set_result, self._load()
            except BaseException as error:
                outcome = model.set_exception, error
            with contextlib.suppress(RuntimeError):  # the asyncio loop is closed
                loop.call_soon_threadsafe(settle, *outcome)

        self._loader = threading.Thread(target=load, name="load", daemon=True)
        self._loader.start()
        return model

    async def _wait_for_stop(self) -> None:
        """Drain after the first stop; end when nothing runs, time is up, or at the second."""
        while not self._num_stops:
            await asyncio.sleep(_POLL_S)
        desk = self.service.desk
        if desk is not None:
            desk.draining = True
            log("draining", requests=desk.num_places_taken)
            deadline = asyncio.get_running_loop().time() + self.settings.drain_s
            while desk.num_places_taken and self._num_stops < 2:
                if asyncio.get_running_loop().time() > deadline:
                    break
                await asyncio.sleep(_POLL_S)
            self._num_cut_off = desk.num_places_taken
            if self._num_cut_off:
                log("cut_off", level=logging.WARNING, requests=self._num_cut_off)
                desk.end_all()
        self.should_exit = True


def _bind(settings: ServeSettings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((settings.host, settings.port))
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise MachineError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}\n"
            "choose another --host or --port",
            name="E_PORT",
        ) from None
    return bound
