"""Where requests go, and that an answer may begin on one replica and end on another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.replay import Diverged, Replay
from deploy.routing import image_key, order, parsed, with_seed
from deploy.settings import FleetSettings
from la_trt.errors import UsageError


def chat(*urls: str, **fields: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]} | (
        fields
    )


def test_the_key_is_that_of_the_first_image() -> None:
    assert image_key(chat("a")) == image_key(chat("a", "b")) == image_key(chat("a", seed=3)) != ""
    assert image_key(chat("a")) != image_key(chat("b"))
    later = chat("a")
    later["messages"] += [{"role": "assistant", "content": "x"}, chat("b")["messages"][0]]
    assert image_key(later) == image_key(chat("a"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [],
        {},
        {"messages": 3},
        {"messages": [3, {"content": "text"}, {"content": [3, {"image_url": {"url": 3}}]}]},
        {"prompt": "text"},
    ],
)
def test_what_has_no_image_has_no_key(value: Any) -> None:
    assert image_key(value) == ""


def test_when_a_replica_goes_only_its_keys_move() -> None:
    replicas = [f"r{i}" for i in range(8)]
    keys = [f"key{i}" for i in range(2000)]
    before = {key: order(key, replicas)[0] for key in keys}
    counts = Counter(before.values())
    assert min(counts.values()) > 150 and max(counts.values()) < 350
    gone = replicas.pop(3)
    for key in keys:
        ranked = order(key, replicas)
        assert sorted(ranked) == sorted(replicas)
        assert ranked[0] == before[key] or before[key] == gone


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"model": "a"}', False),
        (b' {"model": "a", "seed": 7}', True),
        (b'{"model": "a", "seed": null}', True),
        (b"{}", True),
        (b"[1]", True),
        (b"{", True),
        (b'{"a": 1, "a": 2}', True),
    ],
)
def test_a_seed_is_added_where_none_is_named(body: bytes, named: bool) -> None:
    seeded = with_seed(body, parsed(body))
    if named:
        assert seeded == body
    else:
        value = json.loads(seeded)
        assert 0 <= value.pop("seed") < 1 << 31 and value == json.loads(body)


START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}


def events(answer: str, *texts: str, index: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": answer, "created": 1, "choices": [{"index": index, "delta": {"content": text}}]}
        for text in texts
    ]


def message(values: Sequence[dict[str, Any]], *, done: bool = False) -> dict[str, Any]:
    body = b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)
    body += b"data: [DONE]\n\n" if done else b""
    return {"type": "http.response.body", "body": body, "more_body": not done}


def said(messages: Sequence[Any]) -> list[Any]:
    body = b"".join(m.get("body", b"") for m in messages)
    lines = [part.removeprefix(b"data: ") for part in body.split(b"\n\n") if part]
    return [line if line == b"[DONE]" else json.loads(line) for line in lines]


def test_a_second_attempt_goes_on_where_the_first_one_stopped() -> None:
    replay = Replay()
    first = [START, message(events("one", "a", "b")), message(events("one", "c"))]
    passed = [kept for m in first for kept in replay.take(m)]
    replay.again()
    second = [START, message(events("two", "a")), message(events("two", "b", "c", "d"), done=True)]
    passed += [kept for m in second for kept in replay.take(m)]
    assert [m["type"] for m in passed].count("http.response.start") == 1
    *chunks, end = said(passed)
    assert [c["choices"][0]["delta"]["content"] for c in chunks] == ["a", "b", "c", "d"]
    assert {c["id"] for c in chunks} == {"one"} and end == b"[DONE]"


def test_several_choices_may_come_in_another_order() -> None:
    replay = Replay()
    for m in [START, message(events("one", "a", index=0) + events("one", "x", index=1))]:
        list(replay.take(m))
    replay.again()
    other = events("two", "x", "y", index=1) + events("two", "a", "b", index=0)
    kept = [k for m in [START, message(other, done=True)] for k in replay.take(m)]
    texts = [c["choices"][0]["delta"]["content"] for c in said(kept)[:-1]]
    assert texts == ["y", "b"]


@pytest.mark.parametrize(
    "second", [[START, message(events("two", "z"))], [{**START, "status": 503, "headers": []}]]
)
def test_another_answer_is_no_continuation(second: list[Any]) -> None:
    replay = Replay()
    for m in [START, message(events("one", "a"))]:
        list(replay.take(m))
    replay.again()
    with pytest.raises(Diverged):
        [kept for m in second for kept in replay.take(m)]


def test_an_answer_that_is_not_streamed_passes_as_it_is() -> None:
    replay = Replay()
    start = {**START, "headers": [(b"content-type", b"application/json")]}
    body = {"type": "http.response.body", "body": b'{"id": 1}'}
    assert [k for m in (start, body) for k in replay.take(m)] == [start, body]


def test_an_answer_that_is_not_streamed_begins_when_it_is_whole() -> None:
    """A replica that dies behind its headers, or in its body, has said nothing yet."""
    replay = Replay()
    start = {**START, "headers": [(b"content-type", b"application/json")]}
    half = {"type": "http.response.body", "body": b'{"id"', "more_body": True}
    rest = {"type": "http.response.body", "body": b": 1}", "more_body": False}
    for lost in ([start], [start, half]):
        assert [k for m in lost for k in replay.take(m)] == [] and not replay.started
        replay.again()
    whole = [start, half, rest]
    assert [k for m in whole for k in replay.take(m)] == whole and replay.started


@pytest.fixture
def engine(tmp_path: Path) -> str:
    (tmp_path / "bundle.json").write_text("{}")
    return str(tmp_path)


def test_settings_are_checked(engine: str) -> None:
    assert FleetSettings.of({"engine": engine, "cpus": 2}).cpus == 2.0
    for args, what in (
        ({}, "engine is missing"),
        ({"engine": engine + "/none"}, "no bundle"),
        ({"engine": engine, "replicas": 2}, "unknown setting 'replicas'"),
        ({"engine": engine, "threads": "2"}, "threads: expected int"),
        ({"engine": engine, "threads": True}, "threads: expected int"),
        ({"engine": engine, "min_replicas": 3}, "more than max_replicas"),
        ({"engine": engine, "max_queued": 0}, "max_queued: expected at least 1"),
        ({"engine": engine, "backend": "torch"}, "expected onnx, native or tensorrt"),
    ):
        with pytest.raises(UsageError, match=what):
            FleetSettings.of(args)
    keys = Path(engine) / "keys"
    keys.write_text("first-key\nsecond-key\n")
    assert FleetSettings.of({"engine": engine, "api_key_file": str(keys)}).api_keys() == (
        "first-key",
        "second-key",
    )


def test_the_file_for_serve_deploy_has_settings_that_exist(engine: str) -> None:
    import yaml

    text = (Path(__file__).parents[2] / "deploy/fleet.yaml").read_text()
    (application,) = yaml.safe_load(text)["applications"]
    assert application["import_path"] == "deploy.app:build"
    FleetSettings.of(application["args"] | {"engine": engine})
