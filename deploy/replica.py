"""One engine behind the same application that `la-trt serve` has, without its socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from deploy.settings import FleetSettings
from la_trt.api import LookAgain
from la_trt.errors import BundleError
from la_trt.serve.app import Service, make_app
from la_trt.serve.desk import Desk
from la_trt.serve.metrics import Metrics

REPLICA_HEADER = b"x-la-trt-replica"


def bundle_version(engine: str | Path) -> str:
    """What tells a bundle from another at the same path: a change of it is a rolling update."""
    return hashlib.sha256((Path(engine) / "bundle.json").read_bytes()).hexdigest()


class Replica:
    """A deployment's replica. `version`: of the bundle that was asked for."""

    async def __init__(self, settings: FleetSettings, version: str) -> None:  # type: ignore[misc]
        if bundle_version(settings.engine) != version:
            raise BundleError(
                f"{settings.engine}: another bundle than was deployed\ndeploy again",
                name="E_BUNDLE",
            )
        self.name = _replica_name()
        self._settings = settings.serve_settings()
        model = await asyncio.to_thread(_open, settings)
        self._service = Service(self._settings)
        self._desk = Desk(model, self._settings, Metrics(self._settings.model_name))
        self._desk.start()
        self._service.desk = self._desk
        self._app = make_app(self._service)

    async def exchange(
        self, scope: dict[str, Any], body: bytes, key: str
    ) -> AsyncIterator[dict[str, Any]]:
        """The ASGI messages that answer a request. Closing the iterator ends the request.

        `key` is for the router alone.
        """
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        arrived = False

        async def receive() -> dict[str, Any]:
            nonlocal arrived
            if arrived:
                await asyncio.Event().wait()  # who leaves cancels the task
            arrived = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (REPLICA_HEADER, self.name.encode())]
                message = {**message, "headers": headers}
            messages.put_nowait(message)

        async def run() -> None:
            try:
                await self._app(scope, receive, send)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def check_health(self) -> None:
        """Nothing; raises where the engine has stopped, so that the replica is replaced."""
        if not self._desk.loop.alive:
            raise RuntimeError("the engine has stopped")

    def close(self) -> None:
        """End the engine's threads."""
        self._desk.close()


def _open(settings: FleetSettings) -> LookAgain:
    options: dict[str, Any] = {"max_batch": settings.max_batch}
    if settings.backend != "tensorrt":
        options["threads"] = settings.threads
    backend: Any = settings.backend
    return LookAgain.from_bundle(settings.engine, backend=backend, **options)


def _replica_name() -> str:
    """Ray's name for the replica that runs in this process."""
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)
