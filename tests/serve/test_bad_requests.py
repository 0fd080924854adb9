"""Every bad input of the contract, on both routes: refused by name, and nobody else is harmed."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import pytest

from la_trt.serve.schema import ChatRequest
from la_trt.serve.wire import to_json
from tests.serve.running import NAME, Running, ask, chat, data_url, png

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
# What no body may hold: paths, addresses, tracebacks, libraries.
_LEAKS = re.compile(r"/tmp|/usr|site-packages|0x[0-9a-f]{6}|Traceback|PIL|pydantic|starlette|numpy")


def text_request(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "prompt": "Hi", "max_tokens": 2, "temperature": 0} | fields


def image_part(url: object) -> list[dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]


def gif_of(width: int, height: int) -> bytes:
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"GIF89a" + size + bytes(3)


SHARED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"top_k": 10**400}, "top_k", "invalid_value"),
    ({"stop_token_ids": [1] * 257}, "stop_token_ids", "invalid_value"),
    ({"model": "another"}, "model", "model_not_found"),
    ({"model": 3}, "model", "invalid_value"),
    ({"unknown": 1}, "unknown", "unknown_parameter"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": 2.5}, "max_tokens", "invalid_value"),
    ({"max_tokens": "4"}, "max_tokens", "invalid_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_value"),
    ({"max_tokens": 10**30}, None, "context_length_exceeded"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 101}, "temperature", "invalid_value"),
    ({"temperature": "warm"}, "temperature", "invalid_value"),
    ({"temperature": 10**400}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.01}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"seed": -1}, "seed", "invalid_value"),
    ({"seed": 1 << 63}, "seed", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 9}, "n", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["x" * 257]}, "stop", "invalid_value"),
    ({"stop": [3]}, "stop", "invalid_value"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_value"),
    ({"frequency_penalty": -1}, "frequency_penalty", "unsupported_value"),
    ({"logit_bias": {"3": 5}}, "logit_bias", "unsupported_value"),
    ({"lookagain": {"policy": "often"}}, "lookagain.policy", "invalid_value"),
    ({"lookagain": {"policy": "/etc/passwd.yaml"}}, "lookagain.policy", "invalid_value"),
    ({"lookagain": {"policy": {"inject": "all"}}}, "lookagain.policy", "invalid_policy"),
    ({"lookagain": {"inject": "paste"}}, "lookagain.inject", "invalid_value"),
    ({"lookagain": {"route_percent": 101}}, "lookagain.route_percent", "invalid_value"),
    ({"lookagain": {"max_reflections": 9}}, "lookagain.max_reflections", "invalid_value"),
    (
        {"lookagain": {"policy": {"max_reflections": 99}}},
        "lookagain.max_reflections",
        "invalid_value",
    ),
    ({"lookagain": {"depth": 1}}, "lookagain.depth", "unknown_parameter"),
]
ONLY_CHAT: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "Hi"}, "messages", "invalid_value"),
    ({"messages": [{"role": "boss", "content": "Hi"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [*ask(), {"role": "system", "content": "s"}]}, "messages", "invalid_messages"),
    ({"messages": ask("a \ud800 b")}, "messages[0].content", "invalid_text"),
    ({"messages": ask("a \ud800 b", png())}, "messages[0].content[1].text", "invalid_text"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_value"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_value"),
    ({"messages": ask("word " * 3000)}, None, "context_length_exceeded"),
    ({"messages": ask("x" * 3_000_000)}, "messages", "context_length_exceeded"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_value"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "unsupported_value"),
    ({"messages": ask("What?", b"")}, "messages", "invalid_image"),
    ({"messages": ask("What?", b"GIF89a")}, "messages", "invalid_image"),
    ({"messages": ask("What?", b"%PDF-1.7 and so on")}, "messages", "invalid_image"),
    ({"messages": ask("What?", png()[:200])}, "messages", "invalid_image"),
    ({"messages": ask("What?", gif_of(60_000, 60_000))}, "messages", "image_too_large"),
    ({"messages": ask("What?", gif_of(6_000, 10))}, "messages", "invalid_image"),
    ({"messages": ask("What?", *[png()] * 9)}, "messages", "too_many_images"),
    ({"messages": image_part("")}, "messages[0].content[0].image_url.url", "invalid_url"),
    ({"messages": image_part(7)}, "messages[0].content[0].image_url.url", "invalid_value"),
    (
        {"messages": image_part("data:image/png;base64,@@@@")},
        "messages[0].content[0].image_url.url",
        "invalid_url",
    ),
    (
        {"messages": image_part("data:image/png,plain")},
        "messages[0].content[0].image_url.url",
        "invalid_url",
    ),
    (
        {"messages": image_part(data_url(png(), "text/html"))},
        "messages[0].content[0].image_url.url",
        "invalid_url",
    ),
    (
        {"messages": image_part("http://127.0.0.1/x.png")},
        "messages[0].content[0].image_url.url",
        "url_not_allowed",
    ),
    (
        {"messages": image_part("file:///etc/passwd")},
        "messages[0].content[0].image_url.url",
        "url_not_allowed",
    ),
    (
        {"messages": image_part("gopher://x")},
        "messages[0].content[0].image_url.url",
        "invalid_url",
    ),
    ({"max_tokens": 4, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
    (
        {"messages": [{"role": "system", "content": ask("s", png())[0]["content"]}]},
        "messages",
        "invalid_messages",
    ),
]
ONLY_TEXT: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": ""}, "prompt", "invalid_prompt"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [1, "a"]}, None, "invalid_value"),
    ({"prompt": [10**6]}, "prompt", "invalid_prompt"),
    ({"prompt": [-1]}, None, "invalid_value"),
    ({"prompt": ["a"] * 65}, "prompt", "invalid_value"),
    ({"prompt": "\udfff"}, "prompt", "invalid_text"),
    ({"prompt": ["a", "\udfff"]}, "prompt", "invalid_text"),
    ({"prompt": "word " * 3000}, None, "context_length_exceeded"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"echo": True}, "echo", "unsupported_value"),
    ({"best_of": 2}, "best_of", "unsupported_value"),
    ({"suffix": "end"}, "suffix", "unsupported_value"),
    ({"messages": []}, "messages", "unknown_parameter"),
]
CASES = [
    *((CHAT, *case) for case in SHARED + ONLY_CHAT),
    *((TEXT, *case) for case in SHARED + ONLY_TEXT),
]


@pytest.mark.parametrize(("route", "fields", "param", "code"), CASES)
def test_a_bad_field_is_named(
    served: Running, route: str, fields: dict[str, Any], param: str | None, code: str
) -> None:
    request = (chat if route == CHAT else text_request)(**fields)
    status, _, body = served.request("POST", route, to_json(request))
    check_error(body, code)
    assert status == (404 if code == "model_not_found" else 400)
    if param is not None:
        assert json.loads(body)["error"]["param"].startswith(param)


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": "tiny", "model": "tiny"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b'{"temperature": -Infinity}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
        b'{"metadata": ' + b'{"a":' * 101 + b"1" + b"}" * 102,
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(served: Running, route: str, body: bytes) -> None:
    status, _, answer = served.request("POST", route, body)
    assert status == 400
    check_error(answer, "invalid_json")
    assert b"sys." not in answer and b"utf-8-sig" not in answer, "advice for programmers"


@pytest.mark.parametrize("route", [CHAT, TEXT])
def test_other_media_types_are_refused(served: Running, route: str) -> None:
    body = json.dumps(chat()).encode()
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        status, _, answer = served.request("POST", route, body, {"content-type": media})
        assert status == 400
        check_error(answer, "invalid_content_type")


@pytest.mark.parametrize("route", [CHAT, TEXT])
def test_a_packed_body_is_refused_by_that_name(served: Running, route: str) -> None:
    body = gzip.compress(json.dumps(chat()).encode())
    status, _, answer = served.request("POST", route, body, {"content-encoding": "gzip"})
    assert status == 400
    check_error(answer, "invalid_content_encoding")
    headers = {"content-encoding": "identity"}
    plain = json.dumps((chat if route == CHAT else text_request)()).encode()
    assert served.request("POST", route, plain, headers)[0] == 200


def test_null_is_as_good_as_leaving_a_field_out(served: Running) -> None:
    fields = set(ChatRequest.model_fields) - {"model", "messages"}
    assert {"tools", "functions", "audio", "reasoning_effort"} <= fields
    assert served.post(CHAT, chat() | dict.fromkeys(fields - {"max_tokens"}))[0] == 200


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/v1/models", "/metrics"])
def test_head_is_get_without_a_body(served: Running, path: str) -> None:
    status, headers, body = served.request("HEAD", path)
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0
    assert served.request("HEAD", CHAT)[0] == 405


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", TEXT, 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("PUT", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/../../etc/passwd", 404, "model_not_found"),
        ("GET", "/v1/chat/completions/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/%00", 404, "not_found"),
    ],
)
def test_wrong_routes_and_methods(
    served: Running, method: str, path: str, status: int, code: str
) -> None:
    found, headers, body = served.request(method, path)
    assert found == status
    check_error(body, code)
    assert status != 405 or headers["allow"]


def test_control_tokens_in_a_users_text_stay_text(served: Running) -> None:
    plain = served.client().chat.completions.create(model=NAME, messages=ask("a b"), max_tokens=1)
    for spelt in ("<|image_pad|>", "<REFLECTION>", "<|im_end|>"):
        answer = served.client().chat.completions.create(
            model=NAME, messages=ask(f"a {spelt} b"), max_tokens=1
        )
        assert answer.usage is not None and plain.usage is not None
        assert answer.usage.prompt_tokens > plain.usage.prompt_tokens + 2, "one token an entry"
        ids = served.model.processor.vocabulary.encode(f"a {spelt} b")
        assert served.model.processor.vocabulary.control_ids.isdisjoint(ids)
    control = served.model.processor.image_token_id
    status, answer = served.post(TEXT, text_request(prompt=[control]))
    assert (status, answer["error"]["code"]) == (400, "invalid_prompt")


def test_the_server_still_answers_afterwards(served: Running) -> None:
    assert served.post(CHAT, chat())[0] == 200
    assert served.metric("kv_cache_usage_perc") == 0.0


def check_error(body: bytes, code: str) -> None:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert error["message"] and not _LEAKS.search(body.decode()), body
