"""The thread that answers whoever asks: what one client or one step does wrong, others survive."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from la_trt.api import make_options
from la_trt.continuous import Continuous
from la_trt.errors import LookAgainError, MachineError
from la_trt.events import DoneEvent
from la_trt.session import Session
from tests.session.mock_engine import ByteTokens, MockEngine, make_prompt

OPTIONS = make_options(max_tokens=6, ignore_eos=True, policy="text")


@pytest.fixture
def engine() -> MockEngine:
    return MockEngine(script=lambda entries: ord("a") + len(entries) % 20)


@pytest.fixture
def host(engine: MockEngine) -> Iterator[Continuous]:
    found = Continuous(Session(engine, ByteTokens()))  # type: ignore[arg-type]
    yield found
    found.close()
    assert not engine.kv


def ask(host: Continuous, **given: Callable[[], bool]) -> queue.SimpleQueue[Any]:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    host.submit(make_prompt(), OPTIONS, events.put, **given)
    return events


def last(events: queue.SimpleQueue[Any]) -> Any:
    while not isinstance(event := events.get(timeout=30), DoneEvent | LookAgainError):
        pass
    return event


def test_a_step_that_fails_is_told_to_all_and_the_next_request_is_answered(
    host: Continuous, engine: MockEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, num_steps = engine.forward, 0

    def forward(step: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 4:
            raise MachineError("the memory is full")
        return good(step)

    monkeypatch.setattr(engine, "forward", forward)
    assert "the memory is full" in str(last(ask(host)))
    assert len(last(ask(host)).result.tokens) == 6


def test_a_client_that_fails_ends_its_own_request_alone(host: Continuous) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("the host is wrong")

    host.submit(make_prompt(), OPTIONS, fail)
    ask(host, cancelled=fail)
    assert isinstance(last(ask(host)), DoneEvent)


def test_a_cancelled_request_gets_nothing_more(host: Continuous) -> None:
    events = ask(host, cancelled=lambda: True)
    assert isinstance(last(ask(host)), DoneEvent)
    assert events.empty()
