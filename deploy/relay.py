"""The door of a fleet: takes requests, gives each to a replica, asks another where one dies."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deploy.replay import Diverged, Message, Replay
from deploy.routing import image_key, parsed, with_seed
from deploy.settings import FleetSettings
from la_trt.serve.app import Door
from la_trt.serve.errors import ApiError, unavailable
from la_trt.serve.logs import log
from la_trt.serve.settings import ServeSettings
from la_trt.serve.wire import ClientGone, Wire

ATTEMPT_HEADER = b"x-la-trt-attempt"
_ATTEMPTS = 5
_PAUSE_S = 0.2
_GENERATES = ("/v1/chat/completions", "/v1/completions")


class Relay:
    """A deployment's entrance. `replicas`: the handle of the replicas."""

    def __init__(self, replicas: Any, settings: FleetSettings) -> None:
        self._replicas = replicas.options(stream=True)
        self._settings = replace(settings.serve_settings(), api_keys=settings.api_keys())

    async def __call__(self, request: Request) -> Response:
        """The response, which does the work when Serve sends it."""
        return Exchange(self._replicas, self._settings)


class Exchange(Response):
    """One request; it speaks ASGI itself to see clients leave."""

    def __init__(self, replicas: Any, settings: ServeSettings) -> None:
        super().__init__()
        self._replicas = replicas
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check size of the headers and key, then relay."""
        await Door(self._relay, self._settings)(scope, receive, send)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = Wire(scope, receive, send, self._settings.http)
        replay = Replay()
        try:
            if scope["path"] == "/health":
                await wire.json({"status": "ok"})
                return
            if scope["path"] == "/metrics":
                raise ApiError(
                    404, "metrics of a fleet are at Ray's metrics port", code="not_found"
                )
            body = b""
            if scope["path"] in _GENERATES and scope["method"] == "POST":
                body = await wire.body()
            value = await asyncio.to_thread(parsed, body) if body else None
            key, body = image_key(value), with_seed(body, value)
            await wire.run(self._answer(_plain(scope), body, key, replay, send))
        except ApiError as error:
            with contextlib.suppress(ClientGone):
                if replay.started:
                    wire.status = 200
                    await wire.stream([error.body()])
                    await wire.end_stream()
                else:
                    await wire.refuse(error)
        except ClientGone:
            return

    async def _answer(
        self, scope: dict[str, Any], body: bytes, key: str, replay: Replay, send: Send
    ) -> None:
        """Send the answer of the first replica that lives to its end. Raises ApiError."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async for message in self._replicas.exchange.remote(scope, body, key):
                    for kept in replay.take(message):
                        await send(_marked(kept, attempt))
                return
            except BackPressureError:
                raise ApiError(
                    429, "too many requests are waiting", code="queue_full", retry_after_s=1
                ) from None
            except (RayActorError, DeploymentUnavailableError) as error:
                log("replica_lost", attempt=attempt, kind=type(error).__name__)
                replay.again()
                await asyncio.sleep(_PAUSE_S * attempt)
            except Diverged:
                break
        raise unavailable("the replica that answered was lost", "replica_lost")


def _marked(message: Message, attempt: int) -> Message:
    """A message whose headers say which attempt it is of, where it has any."""
    if message["type"] != "http.response.start":
        return message
    return {**message, "headers": [*message["headers"], (ATTEMPT_HEADER, b"%d" % attempt)]}


def _plain(scope: Scope) -> dict[str, Any]:
    """What of a request crosses to a replica: plain values alone."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope.get("raw_path") or scope["path"].encode(),
        "query_string": scope.get("query_string") or b"",
        "root_path": "",
        "headers": [(bytes(name), bytes(value)) for name, value in scope["headers"]],
        "client": None,
        "server": None,
    }
