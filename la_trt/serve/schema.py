"""The requests as the OpenAI API has them, and the one object of our own, `lookagain`.

A field that would change the answer and is not supported may only have the value that changes
nothing; unknown fields are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Nothing = Annotated[float, Field(ge=0, le=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImageUrl(_Strict):
    """A data URL, or an http, https or file URL where the server allows it."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(_Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """An image of a user message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One message. What follows `content` is accepted, as clients send it back, and ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class LookAgainFields(_Strict):
    """How the model looks again. `policy`: a preset, or the object of a policy file."""

    policy: (
        Literal["copy", "route", "text", "vision", "never", "random"] | dict[str, Any] | None
    ) = None
    inject: Literal["embed", "kv"] | None = None
    route_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    max_reflections: Annotated[int, Field(ge=0)] | None = None


class StreamOptions(_Strict):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Generation(_Strict):
    """What both kinds of request have in common."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=256)] | None
    ) = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    lookagain: LookAgainFields | None = None
    # No effect on the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Not supported: only what changes nothing.
    presence_penalty: _Nothing | None = None
    frequency_penalty: _Nothing | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class TextFormat(_Strict):
    """The only response format."""

    type: Literal["text"]


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None


_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1)]


class CompletionRequest(Generation):
    """`POST /v1/completions`: text goes on as it is, without a chat template or images."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | _Ids
        | Annotated[list[_Ids], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: None = None


UNSUPPORTED = frozenset(
    {
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "response_format",
        "modalities",
        "tools",
        "tool_choice",
        "tool_calls",
        "functions",
        "function_call",
        "audio",
        "prediction",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
        "echo",
        "best_of",
        "suffix",
    }
)


class ErrorDetail(_Strict):
    """What went wrong; `param` names the field where there is one."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(_Strict):
    """The body of every answer other than 200."""

    error: ErrorDetail
