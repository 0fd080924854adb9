"""The OpenAPI schema of the routes, from the request models that check the bodies."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from la_trt.serve.schema import ChatRequest, CompletionRequest, ErrorBody

_REF = "#/components/schemas/{model}"
_REFUSALS = {
    "400": "A field, the prompt or an image is refused.",
    "401": "No valid API key.",
    "404": "No such model or route.",
    "405": "Another method is needed.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "429": "Too many requests are waiting; see Retry-After.",
    "431": "The headers are too large.",
    "500": "The model's numbers were not finite, or a bug.",
    "503": "Not ready, or draining; see Retry-After.",
}
_BODIES = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}


def describe(app: FastAPI) -> dict[str, Any]:
    """The schema, made once."""
    if app.openapi_schema is None:
        app.openapi_schema = _schema(app)
    return app.openapi_schema


def _schema(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    models = [(model, "validation") for model in (*_BODIES.values(), ErrorBody)]
    _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
    components = schema.setdefault("components", {})
    components["schemas"] = definitions["$defs"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    error = {"application/json": {"schema": {"$ref": _REF.format(model="ErrorBody")}}}
    refusals = {
        status: {"description": text, "content": error} for status, text in _REFUSALS.items()
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"] |= refusals
            if path.startswith("/v1/"):
                operation["security"] = [{"key": []}, {}]
        if path in _BODIES:
            _describe_generation(operations["post"], _BODIES[path].__name__)
    metrics = schema["paths"]["/metrics"]["get"]["responses"]["200"]
    metrics["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return schema


def _describe_generation(operation: dict[str, Any], model: str) -> None:
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model=model)}}},
    }
    answer = {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage", "lookagain"],
    }
    operation["responses"]["200"] = {
        "description": "The answer; with `stream` true, its chunks as server-sent events.",
        "content": {
            "application/json": {"schema": answer},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
