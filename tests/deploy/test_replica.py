"""A replica, without Ray: the server's application over messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from build_engines.build import build
from deploy import replica as module
from deploy.replica import REPLICA_HEADER, Replica, bundle_version
from deploy.settings import FleetSettings
from la_trt.errors import BundleError
from tests.serve.running import ask, chat, png


@pytest.fixture(scope="module")
def settings(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> FleetSettings:
    path = tmp_path_factory.mktemp("replica") / "tiny"
    build(tiny_checkpoint, path)
    return FleetSettings(engine=str(path), backend="onnx", max_batch=2)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_replica_name", lambda: "local")


def with_replica(
    settings: FleetSettings, work: Callable[[Replica], Coroutine[Any, Any, None]]
) -> None:
    async def main() -> None:
        replica = Replica.__new__(Replica)
        await Replica.__init__(replica, settings, bundle_version(settings.engine))  # type: ignore[misc]
        try:
            await work(replica)
        finally:
            replica.close()

    asyncio.run(main())


def exchange(replica: Replica, body: bytes, path: str = "/v1/chat/completions") -> Any:
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    return replica.exchange(scope | {"query_string": b"", "root_path": ""}, body, "")


async def whole(messages: AsyncIterator[dict[str, Any]]) -> tuple[int, dict[bytes, bytes], Any]:
    start, *rest = [message async for message in messages]
    body = b"".join(message.get("body", b"") for message in rest)
    return start["status"], dict(start["headers"]), json.loads(body)


def test_it_answers_as_the_server_does_and_says_who_it_is(settings: FleetSettings) -> None:
    async def work(replica: Replica) -> None:
        body = json.dumps(chat(messages=ask("How many?", png())) | {"max_tokens": 3}).encode()
        status, headers, answer = await whole(exchange(replica, body))
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
        assert headers[REPLICA_HEADER] == b"local"
        status, _, answer = await whole(exchange(replica, b"{"))
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        status, _, answer = await whole(exchange(replica, b"{}", "/v2"))
        assert (status, answer["error"]["code"]) == (404, "not_found")

    with_replica(settings, work)


def test_who_leaves_frees_the_engine(settings: FleetSettings) -> None:
    async def work(replica: Replica) -> None:
        body = json.dumps(chat(max_tokens=3000, stream=True)).encode()
        messages = exchange(replica, body)
        await anext(messages)
        desk = replica._desk
        assert desk.num_places_taken == 1
        await messages.aclose()
        assert desk.num_places_taken == 0

    with_replica(settings, work)


def test_a_replica_whose_engine_has_stopped_is_not_healthy(settings: FleetSettings) -> None:
    async def work(replica: Replica) -> None:
        await replica.check_health()
        replica._desk.loop.stop()
        with pytest.raises(RuntimeError, match="engine has stopped"):
            await replica.check_health()

    with_replica(settings, work)


def test_another_bundle_than_was_deployed_is_refused(settings: FleetSettings) -> None:
    async def main() -> None:
        replica = Replica.__new__(Replica)
        with pytest.raises(BundleError, match="another bundle"):
            await Replica.__init__(replica, settings, "0" * 64)  # type: ignore[misc]

    asyncio.run(main())
