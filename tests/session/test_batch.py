"""The running batch: shares of the prefill, joining, leaving, best tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from la_trt.api import make_options
from la_trt.batch import Batch, NotStarted, Request, _shares
from la_trt.errors import MachineError
from la_trt.events import DoneEvent, Event, TokenEvent
from la_trt.options import GenerationOptions
from la_trt.session import Session
from tests.session.mock_engine import EOS, VOCAB, ByteTokens, Entry, MockEngine, make_prompt


@pytest.mark.parametrize(
    ("sizes", "budget", "shares"),
    [
        ([1, 1, 1], 1, [1, 1, 1]),
        ([100], 16, [16]),
        ([100, 100], 16, [14, 2]),
        ([100, 3, 100], 16, [12, 3, 1]),
        ([100, 1, 4], 16, [12, 1, 4]),
        ([100, 30], 16, [2, 14]),
        ([100, 5, 30, 9], 16, [1, 5, 1, 9]),
        ([5, 5, 5], 2, [1, 1, 0]),
        ([5, 5, 5], 3, [1, 1, 1]),
        ([2, 3], 16, [2, 3]),
    ],
)
def test_shortest_prompts_first_and_none_stands_still(
    sizes: list[int], budget: int, shares: list[int]
) -> None:
    assert _shares(sizes, budget) == shares


@pytest.mark.parametrize("budget", [1, 2, 7, 16, 128])
def test_shares_use_the_budget_up_and_no_more(budget: int) -> None:
    rng = np.random.default_rng(budget)
    for _ in range(200):
        sizes = rng.integers(1, 60, rng.integers(1, 12)).tolist()
        shares = _shares(sizes, budget)
        long = [(size, share) for size, share in zip(sizes, shares, strict=True) if size > 1]
        assert all(share == 1 for size, share in zip(sizes, shares, strict=True) if size == 1)
        assert all(0 <= share <= size for size, share in long)
        assert sum(share for _, share in long) == min(budget, sum(size for size, _ in long))
        if budget >= len(long):
            assert all(share > 0 for _, share in long)


def batch_of(engine: MockEngine, **options: int) -> Batch:
    return Session(engine, ByteTokens()).open_batch(**options)  # type: ignore[arg-type]


def request(index: int, max_tokens: int = 5, num_samples: int = 1, **fields: int) -> Request:
    options = make_options(
        max_tokens=max_tokens, num_samples=num_samples, ignore_eos=True, policy="text"
    )
    return Request(prompt=make_prompt(f"Q{index}?"), options=options, first_index=index, **fields)  # type: ignore[arg-type]


def engine_of(**fields: int) -> MockEngine:
    return MockEngine(script=lambda entries: ord("a") + len(entries) % 20, **fields)  # type: ignore[arg-type]


def test_a_request_joins_between_steps_and_leaves_when_done() -> None:
    engine = engine_of()
    batch = batch_of(engine)
    batch.add(request(0, max_tokens=10))
    batch.step()
    batch.step()
    batch.add(request(1, max_tokens=2))
    events: list[Event] = []
    while batch.num_running < 2:
        events += batch.step()
    while batch.num_running == 2:
        events += batch.step()
    ended = [e.sequence for e in events if isinstance(e, DoneEvent)]
    assert ended == [1] and batch.num_running == 1
    assert len(engine.finished) == 1 and len(engine.kv) == 1
    while batch.busy:
        events += batch.step()
    assert [e.sequence for e in events if isinstance(e, DoneEvent)] == [1, 0]
    assert not engine.kv and batch.kv_tokens == 0


def test_cancelling_frees_the_slots_of_all_samples() -> None:
    engine = engine_of(max_batch=2)
    batch = batch_of(engine)
    batch.add(request(0, num_samples=4))
    batch.add(request(4))
    batch.step()
    assert batch.num_running == 2
    batch.cancel(0)
    batch.cancel(17)
    events: list[Event] = []
    while batch.busy:
        events += batch.step()
    assert {e.sequence for e in events} == {4}
    assert not engine.kv


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_request_that_cannot_begin_leaves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    batch = batch_of(engine)
    batch.add(request(0, max_tokens=10))
    batch.step()
    lost = request(1)
    batch.add(lost)
    monkeypatch.setattr(engine, "vision", raising(MachineError("no memory for the picture")))
    with pytest.raises(NotStarted, match="no memory") as told:
        batch.step()
    assert told.value.request is lost and batch.num_running == len(engine.kv) == 1
    events: list[Event] = []
    while batch.busy:
        events += batch.step()
    assert {e.sequence for e in events} == {0}


def test_a_step_that_the_engine_refuses_is_no_refused_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of()
    batch = batch_of(engine)
    batch.add(request(0))
    monkeypatch.setattr(engine, "forward", raising(MachineError("the memory is full")))
    with pytest.raises(MachineError, match="the memory is full"):
        batch.step()
    batch.close()
    assert not batch.busy and not engine.kv


def test_closing_drops_all_whatever_the_engine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    batch = batch_of(engine)
    for index in range(3):
        batch.add(request(index, max_tokens=20))
    batch.step()
    assert batch.num_running == 3
    monkeypatch.setattr(engine, "free", raising(RuntimeError("the device is gone")))
    with pytest.raises(RuntimeError, match="gone"):
        batch.close()
    assert not batch.busy


def test_samples_of_one_prompt_do_not_keep_others_waiting() -> None:
    batch = batch_of(engine_of(max_batch=2))
    batch.add(request(0, num_samples=4))
    batch.add(request(4))
    batch.step()
    done: list[int] = []
    while batch.busy:
        done += [e.sequence for e in batch.step() if isinstance(e, DoneEvent)]
    assert done.index(4) <= 1, "one sample of each in turn"


def test_the_best_tokens_are_named_where_they_were_asked_for() -> None:
    wanted = np.full(VOCAB, -5.0, np.float32)
    wanted[[EOS, 70, 65]] = [3.0, 2.0, 2.0]

    def script(entries: list[Entry]) -> np.ndarray:
        return wanted

    session = Session(MockEngine(script=script), ByteTokens())
    options = GenerationOptions(max_tokens=1, top_logprobs=3)
    events = list(session.stream(make_prompt(), options))
    token = next(e for e in events if isinstance(e, TokenEvent))
    assert [i for i, _ in token.top_logprobs] == [EOS, 65, 70]
    total = np.log(np.exp(wanted.astype(np.float64)).sum())
    assert token.top_logprobs[1][1] == pytest.approx(2 - total, abs=1e-5)
    assert token.logprob == token.top_logprobs[0][1]
