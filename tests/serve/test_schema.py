"""Requests drawn from the OpenAPI schema, and from what it forbids, never meet a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.running import NAME, Running, ask, open_bundle, running

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def served(bundle: Path, backend: str) -> Iterator[Running]:
    with running(lambda: open_bundle(bundle, backend, max_batch=4), default_max_tokens=2) as found:
        yield found


def test_the_schema_is_complete(served: Running) -> None:
    status, _, body = served.request("GET", "/openapi.json")
    assert status == 200
    schema = json.loads(body)
    assert schema["openapi"].startswith("3.1")
    chat = schema["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] is False
    assert set(chat["required"]) == {"model", "messages"}
    assert {"lookagain", "stream", "n", "logprobs"} <= set(chat["properties"])
    assert "429" in schema["paths"]["/v1/chat/completions"]["post"]["responses"]
    for path in (
        "/v1/completions",
        "/v1/models",
        "/health",
        "/health/ready",
        "/metrics",
        "/version",
    ):
        assert path in schema["paths"]


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_drawn_requests(served: Running, mode: str) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    chosen = schemathesis.GenerationMode(mode)
    num_asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode == "negative" and operation.method != "post":
            continue

        @settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=chosen))
        def ask_one(case: Any) -> None:
            nonlocal num_asked
            num_asked += 1
            if mode == "positive" and isinstance(case.body, dict):
                # Most drawn names are no model; the fields behind the name are of interest.
                case.body["model"] = NAME
                case.body["max_tokens"] = 2
                case.body.pop("max_completion_tokens", None)
            checks = [*CHECKS, negative_data_rejection] if mode == "negative" else CHECKS
            case.call_and_validate(checks=checks, timeout=60)

        ask_one()
    assert num_asked > 30
    assert served.post("/v1/chat/completions", {"model": NAME, "messages": ask()})[0] == 200
