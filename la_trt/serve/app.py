"""The FastAPI application: routes, the door in front of them, and the OpenAPI schema."""

from __future__ import annotations

import contextlib
import hmac
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

import la_trt
from la_trt.serve.desk import Desk
from la_trt.serve.errors import ApiError, unavailable
from la_trt.serve.generate import ChatCompletion, Completion
from la_trt.serve.logs import log
from la_trt.serve.openapi import describe
from la_trt.serve.settings import ServeSettings
from la_trt.serve.wire import ClientGone, Wire

OPEN_ROUTES = ("/health", "/health/ready", "/metrics", "/version", "/openapi.json")
_KNOWN_ROUTES = (*OPEN_ROUTES, "/v1/models", "/v1/chat/completions", "/v1/completions")


class Service:
    """What the routes share. `desk` is None until the model is loaded."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.desk: Desk | None = None

    def ready_desk(self) -> Desk:
        """The desk. Raises ApiError 503 while the model is not loaded."""
        if self.desk is None:
            raise unavailable("the model is being loaded", "not_ready")
        return self.desk

    def count(self, route: str, status: int) -> None:
        """Note an answer in the metrics, where there are any yet."""
        if self.desk is not None:
            self.desk.metrics.response(route, status)


def make_app(service: Service) -> FastAPI:
    """The application of one server."""
    app = FastAPI(
        title="la-trt",
        version=la_trt.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    _status_routes(app, service)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        if model != service.settings.model_name:
            raise ApiError(
                404, "model: not served here, see /v1/models", code="model_not_found", param="model"
            )
        return _model(service)

    @app.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        return ChatCompletion(service.ready_desk())

    @app.post("/v1/completions")
    async def completions() -> Response:
        return Completion(service.ready_desk())

    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    app.add_middleware(Door, settings=service.settings, count=service.count)
    return app


def _status_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        if service.desk is not None and not service.desk.loop.alive:
            raise unavailable("the engine has stopped", "engine_stopped")
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        desk = service.ready_desk()
        if not desk.ready:
            raise unavailable("the server is draining", "draining")
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        text = generate_latest(service.ready_desk().metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": la_trt.__version__}


def _model(service: Service) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": service.settings.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "la-trt",
    }
    if service.desk is not None:
        limits = service.desk.model.engine.limits
        facts["max_model_len"] = limits.max_len
        facts["lookagain"] = {
            "policy": service.settings.policy,
            "engine": limits.name,
            "device": limits.device,
            "dtype": limits.dtype,
        }
    return facts


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Unknown routes and methods, in the contract's form."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        known = ApiError(405, "this method is not allowed here", code="method_not_allowed")
    elif error.status_code == 404:
        known = ApiError(404, "there is no such route", code="not_found")
    else:
        known = ApiError(400, "the request was refused", code="bad_request")
    known.headers |= dict(error.headers or {})
    return JSONResponse(known.body(), status_code=known.status, headers=known.headers)


class Door:
    """Looks at the headers of every request: their size (431), and the API key (401).

    `count` gets the route and status of what is refused. HEAD is asked as GET: the server below
    sends no body then.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        count: Callable[[str, int], None] | None = None,
    ) -> None:
        self._app, self._settings, self._count = app, settings, count
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await self._refuse(Wire(scope, receive, send, self._settings.http), refusal, scope)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)

    async def _refuse(self, wire: Wire, refusal: ApiError, scope: Scope) -> None:
        route = scope["path"] if scope["path"] in _KNOWN_ROUTES else "other"
        status = refusal.status
        with contextlib.suppress(ClientGone):
            await wire.refuse(refusal)
        if self._count is not None:
            self._count(route, status)
        log("request", id=wire.request_id, route=route, status=status, code=refusal.code)

    def _refusal(self, scope: Scope) -> ApiError | None:
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        size += len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        limit = self._settings.http.max_header_bytes
        if size > limit:
            return ApiError(431, f"headers: more than {limit} bytes", code="headers_too_large")
        if self._keys and scope["path"] not in OPEN_ROUTES and not self._has_key(scope):
            return ApiError(401, "a valid API key is needed", code="invalid_api_key")
        return None

    def _has_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        # Compare with every key, so that the time taken tells nothing of which came close.
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return scheme.lower() == b"bearer" and any(matches)
