"""A request body's bytes as a checked request object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from la_trt.errors import InputError
from la_trt.files.strict_json import parse_json
from la_trt.serve.errors import ApiError, invalid
from la_trt.serve.schema import UNSUPPORTED
from la_trt.serve.settings import HttpLimits

R = TypeVar("R", bound=BaseModel)


def parse_request(body: bytes, kind: type[R], limits: HttpLimits) -> R:
    """The request in a body. Raises ApiError 400 naming the field."""
    try:
        raw = parse_json(
            body,
            where="body",
            todo="send one JSON object in UTF-8",
            error=InputError,
            max_bytes=limits.max_body_bytes,
            max_depth=limits.max_json_depth,
        )
    except InputError as error:
        raise invalid(None, ". ".join(str(error).splitlines()), "invalid_json") from None
    if not isinstance(raw, dict):
        raise invalid(None, "body: expected a JSON object", "invalid_json")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # Of a union, the member that went deepest is the one that was meant.
        alike = [e for e in found if e["loc"][:1] == found[0]["loc"][:1]]
        deepest = max(alike, key=lambda e: len(_param(e["loc"], raw)))
        raise _refused(deepest["type"], deepest["msg"], deepest["loc"], raw) from None


def _refused(kind: str, message: str, loc: Sequence[int | str], raw: dict[str, Any]) -> ApiError:
    param = _param(loc, raw)
    field = str(next((part for part in reversed(loc) if isinstance(part, str)), ""))
    names = {part for part in loc if isinstance(part, str)}
    if names & UNSUPPORTED and kind != "missing":
        unsupported = next(iter(names & UNSUPPORTED))
        return invalid(param, f"{unsupported}: not supported by this server", "unsupported_value")
    if kind == "extra_forbidden":
        return invalid(param, f"{field[:100]}: unknown field", "unknown_parameter")
    if kind == "missing":
        return invalid(param, f"{param}: missing", "missing_required_parameter")
    return invalid(param, f"{param}: {message}")


def _param(loc: Sequence[int | str], raw: Any) -> str:
    """A path such as messages[0].content; the names of union members in `loc` are left out."""
    path = ""
    for position, part in enumerate(loc):
        if isinstance(raw, dict) and isinstance(part, str):
            known = part in raw
            if not known and position < len(loc) - 1:
                continue
            path += f".{part}" if path else part
            raw = raw.get(part)
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            path += f"[{part}]"
            raw = raw[part]
    return path[:200]
