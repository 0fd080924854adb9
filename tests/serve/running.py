"""A server in a thread of the test, and an engine that can be made to stand still."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from PIL import Image, ImageDraw

from la_trt.api import LookAgain
from la_trt.errors import MachineError
from la_trt.serve.server import Server
from la_trt.serve.settings import ServeSettings

NAME = "tiny"
WAIT_S = 60.0


class GatedEngine:
    """An engine whose forward passes wait while `hold` is called for; everything else passes."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._open = threading.Event()
        self._open.set()
        self.num_steps = 0
        self.pause_s = 0.0  # before every step
        self.num_vision = 0
        self.fail_next: Exception | None = None
        self.fail_after = 0  # steps that still go well before `fail_next`

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def hold(self) -> None:
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    def vision(self, *args: Any) -> Any:
        self.num_vision += 1
        return self._engine.vision(*args)

    def forward(self, step: Any) -> Any:
        assert self._open.wait(WAIT_S), "the test never let the engine go"
        if self.fail_next is not None and self.fail_after:
            self.fail_after -= 1
        elif self.fail_next is not None:
            failure, self.fail_next = self.fail_next, None
            raise failure
        self.num_steps += 1
        time.sleep(self.pause_s)
        return self._engine.forward(step)


@dataclass
class Running:
    server: Server
    engine: GatedEngine
    model: LookAgain
    failure: BaseException | None = None  # what `Server.run` raised

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        given = {"api_key": "none-needed", "max_retries": 0, "timeout": WAIT_S} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=WAIT_S)
        with contextlib.closing(connection):
            given = {"content-type": "application/json"} if body is not None else {}
            connection.request(method, path, body, given | (headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read()

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        status, _, body = self.request("POST", path, json.dumps(value).encode())
        return status, json.loads(body)

    def metric(self, name: str, **labels: str) -> float:
        desk = self.server.service.desk
        assert desk is not None
        wanted = {"model_name": desk.settings.model_name} | labels
        value = desk.metrics.registry.get_sample_value(f"lookagain:{name}", wanted)
        return 0.0 if value is None else value


@contextlib.contextmanager
def running(
    open_model: Callable[[], LookAgain], *, cuts_off: bool = False, **settings: Any
) -> Iterator[Running]:
    """A server on a free port of 127.0.0.1 until the block ends.

    `cuts_off` says that it will have to cut requests off when it stops.
    """
    model = open_model()
    gate = GatedEngine(model.engine)
    model.engine = model.session.engine = gate  # type: ignore[assignment]
    given = {"model_name": NAME, "port": 0, "drain_s": 5.0} | settings
    server = Server(ServeSettings(**given), lambda: model)
    found = Running(server=server, engine=gate, model=model)

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            found.failure = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert server.loaded.wait(WAIT_S), "the model was not loaded"
    wait_until(lambda: server.service.desk is not None)
    try:
        yield found
    finally:
        gate.let_go()
        server.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive(), "the server did not stop"
    if not cuts_off and found.failure is not None:
        raise found.failure
    assert isinstance(found.failure, MachineError) is cuts_off


def wait_until(condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Return once `condition` holds; fails when it does not come to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)


def png(colour: str = "red", size: tuple[int, int] = (56, 56)) -> bytes:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=colour)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes, media: str = "image/png") -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def ask(text: str = "How many?", *images: bytes) -> list[dict[str, Any]]:
    """Messages of one question about encoded images."""
    if not images:
        return [{"role": "user", "content": text}]
    parts = [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a short greedy chat request."""
    return {
        "model": NAME,
        "messages": ask(),
        "max_tokens": 4,
        "temperature": 0,
        "ignore_eos": True,
    } | fields


def open_bundle(path: Path, backend: Any, **options: Any) -> LookAgain:
    return LookAgain.from_bundle(path, backend=backend, threads=1, **options)
