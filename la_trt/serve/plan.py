"""What a checked request asks for: messages, image places and generation options."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from la_trt.errors import InputError, LookAgainError, UsageError
from la_trt.limits import Limits
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import PRESETS, Policy, policy_from_dict, preset
from la_trt.sampling import SamplingParams
from la_trt.serve.errors import from_known, invalid
from la_trt.serve.schema import (
    ChatRequest,
    CompletionRequest,
    Generation,
    ImagePart,
    LookAgainFields,
)
from la_trt.serve.settings import ServeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about the generation but the prompt.

    `max_tokens` None: as many as the server gives by default and the context allows.
    `warnings` name settings that have no effect.
    """

    policy: Policy
    sampling: SamplingParams
    n: int
    max_tokens: int | None
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int
    stream: bool
    include_usage: bool
    warnings: tuple[str, ...]

    def options(self, max_tokens: int) -> GenerationOptions:
        """The options of the session."""
        return GenerationOptions(
            policy=self.policy,
            sampling=self.sampling,
            max_tokens=max_tokens,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            num_samples=self.n,
            top_logprobs=self.top_logprobs,
        )

    @property
    def policy_label(self) -> str:
        """The policy's name where it is a preset's, else `custom`: for metrics and logs."""
        return self.policy.name if self.policy.name in PRESETS else "custom"

    def facts(self) -> dict[str, Any]:
        """The settings in the response's `lookagain` object."""
        facts: dict[str, Any] = {"policy": self.policy.name, "seed": self.sampling.seed}
        if self.policy.injects:
            select = self.policy.select
            facts |= {
                "inject": self.policy.inject,
                "select": select.kind,
                "route_percent": None if select.kind == "all" else select.percent,
                "max_reflections": self.policy.max_reflections,
            }
        if self.warnings:
            facts["warnings"] = list(self.warnings)
        return facts


def plan_of(
    request: ChatRequest | CompletionRequest, settings: ServeSettings, limits: Limits
) -> Plan:
    """The plan of a request. Raises ApiError 400 where a value exceeds the server's limits."""
    n = request.n or 1
    if n > settings.http.max_n:
        raise invalid("n", f"n: at most {settings.http.max_n} answers, got {n}")
    policy, warnings = _policy(request.lookagain, settings.policy, limits)
    logprobs, top = _logprobs(request)
    if top > settings.http.max_top_logprobs:
        raise invalid(
            "top_logprobs" if isinstance(request, ChatRequest) else "logprobs",
            f"at most {settings.http.max_top_logprobs} log-probabilities a token, got {top}",
        )
    stream = bool(request.stream)
    if request.stream_options is not None and not stream:
        raise invalid("stream_options", "stream_options: only with stream true")
    max_tokens = request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        if max_tokens is not None:
            raise invalid("max_tokens", "max_tokens: not beside max_completion_tokens")
        max_tokens = request.max_completion_tokens
    options = request.stream_options
    return Plan(
        policy=policy,
        sampling=_sampling(request),
        n=n,
        max_tokens=max_tokens,
        stop=_stop(request.stop, limits),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        top_logprobs=top,
        stream=stream,
        include_usage=options is not None and bool(options.include_usage),
        warnings=tuple(warnings),
    )


def messages_of(request: ChatRequest) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Messages for the processor, image parts still empty, and (url, field) of each image."""
    messages, images = [], []
    for i, message in enumerate(request.messages):
        where = f"messages[{i}].content"
        role = "system" if message.role == "developer" else message.role
        content: str | list[dict[str, Any]]
        if message.content is None:
            if role != "assistant":
                raise invalid(where, f"{where}: missing", "missing_required_parameter")
            content = ""
        elif isinstance(message.content, str):
            check_unicode(message.content, where)
            content = message.content
        else:
            content = []
            for j, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    images.append((part.image_url.url, f"{where}[{j}].image_url.url"))
                    content.append({"type": "image"})
                else:
                    check_unicode(part.text, f"{where}[{j}].text")
                    content.append({"type": "text", "text": part.text})
        messages.append({"role": role, "content": content})
    return messages, images


def prompts_of(request: CompletionRequest) -> Sequence[str | list[int]]:
    """The prompts of a completion request, one or several, as text or as token ids."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[int(i) for i in prompt]]
    return prompt


def _policy(
    fields: LookAgainFields | None, default: str, limits: Limits
) -> tuple[Policy, list[str]]:
    fields = fields or LookAgainFields()
    try:
        if isinstance(fields.policy, dict):
            policy = policy_from_dict(fields.policy)
        else:
            policy = preset(fields.policy or default)
    except UsageError as error:
        raise from_known(error, "lookagain.policy") from None
    warnings = []
    for name in ("inject", "route_percent", "max_reflections"):
        idle = not policy.injects or (name == "route_percent" and policy.select.kind == "all")
        if getattr(fields, name) is not None and idle:
            warnings.append(f"{name} has no effect on policy {policy.name[:100]}")
    if fields.route_percent is not None:
        policy = replace(policy, select=replace(policy.select, percent=fields.route_percent))
    if fields.inject is not None:
        policy = replace(policy, inject=fields.inject)
    if fields.max_reflections is not None:
        policy = replace(policy, max_reflections=fields.max_reflections)
    if policy.max_reflections > limits.max_reflections:
        raise invalid(
            "lookagain.max_reflections",
            f"max_reflections: at most {limits.max_reflections} a request",
        )
    return policy, warnings


def _sampling(request: Generation) -> SamplingParams:
    seed = secrets.randbelow(1 << 31) if request.seed is None else request.seed
    try:
        return SamplingParams(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=max(request.top_k or 0, 0),
            repetition_penalty=(
                1.0 if request.repetition_penalty is None else request.repetition_penalty
            ),
            seed=seed,
        )
    except LookAgainError as error:
        raise from_known(error) from None


def _stop(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    given = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(given) > limits.max_stop_strings:
        raise invalid("stop", f"stop: at most {limits.max_stop_strings} strings, got {len(given)}")
    if any(not 0 < len(text) <= limits.max_stop_length for text in given):
        raise invalid("stop", f"stop: strings of 1 to {limits.max_stop_length} characters")
    return given


def _logprobs(request: ChatRequest | CompletionRequest) -> tuple[bool, int]:
    if isinstance(request, CompletionRequest):
        return request.logprobs is not None, request.logprobs or 0
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "top_logprobs: only with logprobs true")
    return bool(request.logprobs), request.top_logprobs or 0


def check_unicode(text: str, param: str) -> None:
    """Nothing; raises ApiError where a text, which JSON may escape, is no valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(
            param,
            f"{param}: character {error.start} is a lone surrogate, not valid Unicode",
            "invalid_text",
        ) from None


def check_text_length(num_bytes: int, longest_token: int, max_length: int, param: str) -> None:
    """Nothing; raises ApiError where a text cannot fit, before it is tokenised."""
    if num_bytes > longest_token * max_length:
        raise from_known(
            InputError(
                f"{param}: a text of {num_bytes} bytes cannot fit the {max_length} tokens of "
                "context",
                name="E_CONTEXT_LENGTH",
            ),
            param,
        )
