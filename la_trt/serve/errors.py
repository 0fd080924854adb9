"""Errors as the HTTP contract has them: {"error": {message, type, param, code}}."""

from __future__ import annotations

import re
from typing import Any

from la_trt.errors import InputError, LookAgainError, MachineError, UsageError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "service_unavailable",
}
_CODES = {
    "E_CONTEXT_LENGTH": "context_length_exceeded",
    "E_IMAGE_TOO_LARGE": "image_too_large",
    "E_IMAGE_COUNT": "too_many_images",
    "E_MESSAGES": "invalid_messages",
    "E_PROMPT": "invalid_prompt",
    "E_TEXT": "invalid_text",
    "E_POLICY": "invalid_policy",
    "E_INJECT": "invalid_policy",
}
# What a decoder said, which may name libraries and addresses.
_DETAIL = re.compile(r" \([A-Z]\w*: .*\)", re.DOTALL)
_FIELD = re.compile(r"[a-z_]+(\[\d+\])?([.][a-z_]+(\[\d+\])?)*")


class ApiError(Exception):
    """An answer other than 200. `retry_after_s` goes into the header `Retry-After`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = {}
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    def body(self) -> dict[str, Any]:
        """The published JSON object."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES[self.status],
                "param": self.param,
                "code": self.code,
            }
        }


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """A 400 for one field."""
    return ApiError(400, message, code=code, param=param)


def internal() -> ApiError:
    """The 500 of a bug: says nothing of where."""
    return ApiError(500, "the server failed at this request", code="internal_error")


def numerical() -> ApiError:
    """The 500 of logits that were not finite."""
    return ApiError(500, "the model's numbers were not finite", code="numerical_error")


def unavailable(message: str, code: str, retry_after_s: int = 5) -> ApiError:
    """A 503."""
    return ApiError(503, message, code=code, retry_after_s=retry_after_s)


def from_known(error: LookAgainError, param: str | None = None) -> ApiError:
    """The HTTP form of one of the project's errors; names no path, address or library."""
    if isinstance(error, MachineError):
        return unavailable("the server is out of memory or KV slots for now", "overloaded")
    if error.name == "E_TEMPLATE":
        return invalid("messages", "the chat template refuses these messages", "invalid_messages")
    if not isinstance(error, (InputError, UsageError)):
        return internal()
    text = ". ".join(_DETAIL.sub("", str(error)).splitlines())
    if error.name.startswith("E_IMAGE"):
        code = _CODES.get(error.name, "invalid_image")
        if error.name == "E_IMAGE_FILE":
            text = "image: cannot be read"
        return invalid(param or "messages", text, code)
    field = text.partition(":")[0]
    if param is None and _FIELD.fullmatch(field):
        param = field
    return invalid(param, text, _CODES.get(error.name, "invalid_value"))
