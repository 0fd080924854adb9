"""The official client, unchanged, gets what the OpenAI API promises, and `lookagain` besides."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from la_trt.api import LookAgain
from la_trt.assets import TINY_CHECKPOINT
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import preset
from la_trt.serve.desk import text_prompt
from la_trt.serve.splitter import AnswerSplitter
from tests.serve.running import NAME, Running, ask, chat, open_bundle, png, running, wait_until

PURPLE = TINY_CHECKPOINT.parent / "images" / "purple.png"
QUESTION = "What number is written on the large purple star?"


@pytest.fixture(scope="module")
def reflecting(reflecting_bundle: Path, backend: str) -> Iterator[Running]:
    with running(lambda: open_bundle(reflecting_bundle, backend, max_batch=4)) as found:
        yield found


@pytest.fixture(scope="module", params=["native", "onnx"])
def shipped(request: pytest.FixtureRequest, shipped_bundle: Path) -> Iterator[Running]:
    if request.param == "native":
        pytest.importorskip("la_trt._native")
    with running(lambda: open_bundle(shipped_bundle, request.param, max_batch=2)) as found:
        yield found


def test_chat_about_an_image_has_reasoning_and_conclusion_apart(
    shipped: Running, shipped_bundle: Path
) -> None:
    alone = open_bundle(shipped_bundle, shipped.engine.limits.name, max_batch=1)
    expected = alone.generate([PURPLE], QUESTION)
    answer = shipped.client().chat.completions.create(
        model=NAME, messages=ask(QUESTION, PURPLE.read_bytes()), temperature=0
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == expected.finish_reason == "stop"
    assert message.content == expected.conclusion != ""
    reasoning = message.reasoning_content  # type: ignore[attr-defined]
    assert reasoning.startswith("<SUMMARY>") and "</REFLECTION>" in reasoning
    assert f"{reasoning}<CONCLUSION>{message.content}</CONCLUSION>" == expected.text
    look = answer.lookagain  # type: ignore[attr-defined]
    assert (look["policy"], look["inject"]) == ("copy", "embed")
    injected = [r["num_tokens"] for r in look["choices"][0]["reinjections"]]
    assert injected == [r.num_tokens for r in expected.reinjections] != []
    assert look["choices"][0]["timings"]["vision_ms"] > 0
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens


def test_guessed_tokens_say_the_same_and_are_counted(shipped_bundle: Path) -> None:
    pytest.importorskip("la_trt._native")
    expected = open_bundle(shipped_bundle, "native").generate([PURPLE], QUESTION)
    with running(lambda: open_bundle(shipped_bundle, "native", max_batch=2, speculate=3)) as found:
        for _ in range(2):
            answer = found.client().chat.completions.create(
                model=NAME, messages=ask(QUESTION, PURPLE.read_bytes()), temperature=0
            )
            reasoning = answer.choices[0].message.reasoning_content  # type: ignore[attr-defined]
            content = answer.choices[0].message.content
            assert f"{reasoning}<CONCLUSION>{content}</CONCLUSION>" == expected.text
        drafted, accepted = (
            found.metric(f"spec_decode_num_{what}_tokens_total") for what in ("draft", "accepted")
        )
        # The second answer is the first, so that nearly all of its tokens are guessed.
        assert 0.5 * len(expected.tokens) < accepted < drafted
        assert found.engine.num_steps < 1.5 * len(expected.tokens)


def test_a_stream_says_the_same_as_the_whole_answer(shipped: Running) -> None:
    client = shipped.client()
    messages = ask(QUESTION, PURPLE.read_bytes())
    whole = client.chat.completions.create(model=NAME, messages=messages, temperature=0)
    stream = client.chat.completions.create(
        model=NAME,
        messages=messages,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    content, reasoning, finish, usage = "", "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        if chunk.choices:
            delta = chunk.choices[0].delta
            content += delta.content or ""
            reasoning += getattr(delta, "reasoning_content", None) or ""
            finish = chunk.choices[0].finish_reason or finish
    message = whole.choices[0].message
    assert content == message.content
    assert reasoning == message.reasoning_content  # type: ignore[attr-defined]
    assert finish == "stop"
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    # The second time, everything but the last token of the prompt was still there.
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_no_more_of_a_prompt_is_cached_than_it_has_tokens(served: Running) -> None:
    def usage(**fields: Any) -> dict[str, Any]:
        body = {"messages": ask("How many red circles are there?"), "n": 2} | fields
        status, answer = served.post("/v1/chat/completions", chat(**body))
        assert status == 200, answer
        return dict(answer["usage"])

    usage()  # every slot now holds the prompt, up to its last token
    found = usage()
    assert found["prompt_tokens_details"]["cached_tokens"] == found["prompt_tokens"] - 1


def test_the_server_answers_as_the_library_does(
    served: Running, bundle: Path, backend: str
) -> None:
    alone: LookAgain = open_bundle(bundle, backend, max_batch=1)
    answer = served.client().completions.create(
        model=NAME, prompt="How many red", max_tokens=12, temperature=0, extra_body=_ENDLESS
    )
    ids = alone.processor.vocabulary.encode("How many red")
    options = GenerationOptions(max_tokens=12, ignore_eos=True, policy=preset("copy"))
    expected = alone.session.generate(
        text_prompt(ids, alone.processor.image_config.patch_dim), options
    )
    assert answer.choices[0].text == expected.text
    question = alone.generate([png()], "How many?", max_tokens=12, ignore_eos=True)
    chat = served.client().chat.completions.create(
        model=NAME,
        messages=ask("How many?", png()),
        max_tokens=12,
        temperature=0,
        extra_body=_ENDLESS,
    )
    message = chat.choices[0].message
    splitter = AnswerSplitter()
    pieces = [splitter.push(question.text), splitter.finish()]
    assert message.content == "".join(piece.content for piece in pieces)
    reasoning = "".join(piece.reasoning for piece in pieces) or None
    assert message.reasoning_content == reasoning  # type: ignore[attr-defined]


_ENDLESS = {"ignore_eos": True}


def test_reinjections_come_in_the_stream_and_other_clients_see_empty_deltas(
    reflecting: Running,
) -> None:
    stream = reflecting.client().chat.completions.create(
        model=NAME,
        messages=ask("How many?", png()),
        max_tokens=5,
        temperature=0,
        stream=True,
        extra_body={"lookagain": {"policy": "route", "route_percent": 25, "max_reflections": 2}},
    )
    events, last = [], None
    for chunk in stream:
        look = getattr(chunk, "lookagain", None)
        assert len(chunk.choices) == 1, "a client may always read choices[0].delta"
        if look and "events" in look:
            events += look["events"]
            assert chunk.choices[0].delta.content is None
        last = look or last
    injected = [e for e in events if e["type"] == "reinject"]
    assert [e["skipped"] for e in injected] == [False, False, "max_reflections", "max_reflections"]
    assert {e["num_tokens"] for e in injected[:2]} == {1}
    assert sum(e["type"] == "reflection" and e["opened"] for e in events) == 5
    assert last is not None and last["choices"][0]["reinjected_tokens"] == 2
    assert (last["policy"], last["select"], last["route_percent"]) == ("route", "route", 25)


@pytest.mark.parametrize("policy", ["copy", "route", "text", "vision", "never", "random"])
def test_every_policy_can_be_asked_for(reflecting: Running, policy: str) -> None:
    before = reflecting.metric("reflections_total", policy=policy)
    answer = reflecting.client().chat.completions.create(
        model=NAME,
        messages=ask("How many?", png()),
        max_tokens=4,
        temperature=0,
        extra_body={"lookagain": {"policy": policy}, "ignore_eos": True},
    )
    look = answer.lookagain  # type: ignore[attr-defined]
    assert look["policy"] == policy
    reflections = look["choices"][0]["num_reflections"]
    assert reflections == (0 if policy == "never" else 2 if policy == "vision" else 4)
    assert reflecting.metric("reflections_total", policy=policy) - before == reflections
    assert bool(look["choices"][0]["reinjected_tokens"]) == (policy not in ("text", "never"))


def test_a_policy_of_ones_own_and_settings_without_effect(reflecting: Running) -> None:
    own = {"name": "often", "trigger": {"kind": "every", "every_tokens": 2}, "inject": "kv"}
    client = reflecting.client()
    answer = client.chat.completions.create(
        model=NAME,
        messages=ask("How many?", png()),
        max_tokens=6,
        temperature=0,
        extra_body={"lookagain": {"policy": own}},
    )
    look = answer.lookagain  # type: ignore[attr-defined]
    assert [(r["step"], r["kind"]) for r in look["choices"][0]["reinjections"]] == [
        (2, "kv"),
        (4, "kv"),
    ]
    answer = client.chat.completions.create(
        model=NAME,
        messages=ask(),
        max_tokens=2,
        extra_body={"lookagain": {"policy": "text", "inject": "kv"}},
    )
    assert answer.lookagain["warnings"] == [  # type: ignore[attr-defined]
        "inject has no effect on policy text"
    ]


def test_several_answers_are_those_of_their_own_seeds(served: Running) -> None:
    def contents(n: int) -> list[str | None]:
        answer = served.client().chat.completions.create(
            model=NAME, messages=ask(), max_tokens=8, n=n, seed=5, extra_body=_ENDLESS
        )
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.message.content for choice in answer.choices]

    three = contents(3)
    assert len(set(three)) == 3
    assert contents(1) == three[:1]


def test_log_probabilities(served: Running) -> None:
    answer = served.client().chat.completions.create(
        model=NAME,
        messages=ask(),
        max_tokens=3,
        temperature=0,
        logprobs=True,
        top_logprobs=4,
        extra_body=_ENDLESS,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 3
    for token in logprobs.content:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 4 and values == sorted(values, reverse=True)
        assert token.logprob == values[0] <= 0, "greedy decoding takes the best"
    text = served.client().completions.create(
        model=NAME, prompt="How", max_tokens=3, temperature=0, logprobs=2, extra_body=_ENDLESS
    )
    found = text.choices[0].logprobs
    assert found is not None and found.token_logprobs is not None and found.text_offset
    assert len(found.token_logprobs) == 3 and found.text_offset[0] == 0


def test_parts_of_characters_are_told_apart(served: Running) -> None:
    status, answer = served.post(
        "/v1/completions",
        {"model": NAME, "prompt": "How", "max_tokens": 8, "ignore_eos": True, "logprobs": 20},
    )
    assert status == 200
    tops = answer["choices"][0]["logprobs"]["top_logprobs"]
    assert [len(top) for top in tops] == [20] * 8
    parts = [name for top in tops for name in top if name.startswith("bytes:")]
    assert parts and all(re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", name) for name in parts)


def test_completions_of_several_prompts_and_of_token_ids(served: Running) -> None:
    client = served.client()
    ids = served.model.processor.vocabulary.encode("Describe")
    many = client.completions.create(
        model=NAME,
        prompt=["Describe", "How many"],
        max_tokens=6,
        temperature=0,
        extra_body=_ENDLESS,
    )
    one = client.completions.create(
        model=NAME, prompt=ids, max_tokens=6, temperature=0, extra_body=_ENDLESS
    )
    assert [choice.index for choice in many.choices] == [0, 1]
    assert many.choices[0].text == one.choices[0].text != many.choices[1].text
    streamed = client.completions.create(
        model=NAME, prompt=ids, max_tokens=6, temperature=0, stream=True, extra_body=_ENDLESS
    )
    assert "".join(c.choices[0].text for c in streamed) == one.choices[0].text


def test_a_conversation_goes_on_with_the_message_that_came_back(served: Running) -> None:
    client = served.client()
    messages = ask("How many?", png())
    first = client.chat.completions.create(model=NAME, messages=messages, max_tokens=4)
    back = first.choices[0].message.model_dump()
    more = [*messages, back, {"role": "user", "content": "Sure?"}]
    second = client.chat.completions.create(model=NAME, messages=more, max_tokens=4)  # type: ignore[arg-type]
    assert second.usage is not None and first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_a_stop_string_ends_the_answer(served: Running) -> None:
    client = served.client()
    text = client.completions.create(
        model=NAME, prompt="Sum", max_tokens=16, temperature=0, extra_body=_ENDLESS
    )
    whole = text.choices[0].text
    stop = whole[5:7]
    cut = client.completions.create(
        model=NAME, prompt="Sum", max_tokens=16, temperature=0, stop=stop, extra_body=_ENDLESS
    )
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (
        whole[: whole.index(stop)],
        "stop",
    )


def test_errors_are_those_of_the_client(served: Running) -> None:
    client = served.client()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="another", messages=ask())
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=NAME, messages=ask(), temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=NAME, messages=ask(), max_tokens=100_000)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=NAME, messages=ask("What?", b"\x89PNG\r\n\x1a\n" + bytes(40)), stream=True
        )
    assert refused.value.code == "invalid_image"
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-123_4.5", True), ("a b", False), ("x" * 65, False), ("", False)]
)
def test_a_request_keeps_its_own_id_where_it_is_plain(
    served: Running, given: str, kept: bool
) -> None:
    _, headers, _ = served.request("POST", "/v1/chat/completions", b"{}", {"x-request-id": given})
    found = headers["x-request-id"]
    assert found == given if kept else found.startswith("req-")


def test_the_image_that_is_refused_is_named(served: Running) -> None:
    messages = ask("How many?", png(), b"no image")
    status, answer = served.post("/v1/chat/completions", chat(messages=messages))
    assert (status, answer["error"]["code"]) == (400, "invalid_image")
    assert answer["error"]["param"] == "messages[0].content[1].image_url.url"


def test_base64_may_have_line_breaks(served: Running) -> None:
    wrapped = "data:image/png;base64," + base64.encodebytes(png()).decode()
    assert wrapped.count("\n") > 1
    parts = [{"type": "image_url", "image_url": {"url": wrapped}}]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "How many?"}]}]
    assert served.post("/v1/chat/completions", chat(messages=messages))[0] == 200


def test_only_a_key_lets_one_in(
    bundle: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="la_trt.serve")
    key = "a-key-of-the-test"
    with running(lambda: open_bundle(bundle, backend), api_keys=(key, "another-key")) as server:
        for wrong in ("none-needed", key[:-1], key + "x"):
            with pytest.raises(openai.AuthenticationError):
                server.client(api_key=wrong).models.list()
        assert server.client(api_key=key).models.list().data
        status, headers, _ = server.request("POST", "/v1/chat/completions", b"{}")
        assert status == 401
        route, label = "/v1/chat/completions", "http_responses_total"

        def logged() -> list[tuple[object, ...]]:
            all_fields = [getattr(record, "fields", {}) for record in caplog.records]
            mine = [f for f in all_fields if f.get("id") == headers["x-request-id"]]
            return [(f["route"], f["status"], f["code"]) for f in mine]

        wait_until(lambda: bool(logged()))
        assert logged() == [(route, 401, "invalid_api_key")]
        assert server.metric(label, route=route, status="401") == 1
        assert server.request("GET", "/nothing")[0] == 401, "routes are not told to strangers"
        for path in ("/health", "/health/ready", "/metrics", "/version"):
            assert server.request("GET", path)[0] == 200
