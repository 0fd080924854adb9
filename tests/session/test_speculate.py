"""Guessed tokens: what is guessed, and that guesses change no event, no mass and no KV position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from la_trt import speculate
from la_trt.api import make_options
from la_trt.errors import UsageError
from la_trt.events import DoneEvent, Event, ReinjectEvent, TokenEvent
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import Policy, Select, Trigger
from la_trt.session import Session
from la_trt.speculate import NgramDrafter
from tests.session.mock_engine import (
    EOS,
    R_END,
    VOCAB,
    ByteTokens,
    Entry,
    MockEngine,
    R,
    make_prompt,
)

ALPHABET = [*b"abcd", R, R_END]


def say(drafter: NgramDrafter, tokens: list[int]) -> None:
    said: list[int] = []
    for token in tokens:
        said.append(token)
        drafter.learn(said)


def test_a_guess_is_what_followed_the_last_two_tokens_last_time() -> None:
    drafter = NgramDrafter(4)
    say(drafter, [1, 2, 3, 4, 5, 1, 2, 6, 7])
    assert drafter.guess([1, 2], 2) == [6, 7]  # not [3, 4], which is older
    assert drafter.guess([9, 9, 2, 3], 3) == [4, 5, 1]
    assert drafter.guess([6, 7], 2) == []  # nothing followed yet
    assert drafter.guess([2], 2) == [] == drafter.guess([], 1)


def test_the_longest_context_decides() -> None:
    drafter = NgramDrafter(4)
    say(drafter, [5, 6, 1, 2, 30])
    say(drafter, [7, 8, 1, 2, 40])
    assert drafter.guess([5, 6, 1, 2], 1) == [30]
    assert drafter.guess([7, 8, 1, 2], 1) == [40]
    assert drafter.guess([0, 0, 1, 2], 1) == [40]
    say(drafter, [9, 9, 9, 9, 7, 8, 1, 2, 50])
    say(drafter, [7, 8, 1, 2, 60])
    assert drafter.guess([9, 9, 9, 9, 7, 8, 1, 2], 1) == [50]


def test_what_goes_on_growing_is_seen() -> None:
    drafter = NgramDrafter(4)
    said = [1, 2, 3]
    drafter.learn(said)
    assert drafter.guess([1, 2], 9) == [3]
    said.append(4)
    assert drafter.guess([1, 2], 9) == [3, 4]


def test_the_oldest_contexts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculate, "_MAX_CONTEXTS", 4)
    drafter = NgramDrafter(1)
    say(drafter, [1, 2, 3])
    say(drafter, [1, 2, 3])  # again, and so not the oldest any more
    say(drafter, [4, 5, 6])
    say(drafter, [7, 8, 9])
    say(drafter, [10, 11, 12])
    assert drafter.guess([1, 2], 1) == [3]
    say(drafter, [13, 14, 15])
    assert drafter.guess([1, 2], 1) == []
    assert drafter.guess([4, 5], 1) == [6] and drafter.guess([13, 14], 1) == [15]


def test_guesses_that_never_come_true_are_made_rarely_until_they_do() -> None:
    drafter = NgramDrafter(2)
    said = [1, 2, 3, 4]
    for n in range(1, 5):
        drafter.learn(said[:n])

    def guesses(num: int, came_true: int) -> int:
        made = 0
        for _ in range(num):
            found = drafter.guess([1, 2], 1)
            made += bool(found)
            if found:
                drafter.count(1, came_true)
        return made

    # (15 / 16)**22 < 1 / 4: after 22 wrong ones in a row one in eight.
    assert guesses(22, 0) == 22 and guesses(80, 0) == 10
    again = guesses(8 * 20, 1)
    assert 80 < again < 160, "they come true: soon all are made again"
    assert guesses(50, 1) == 50
    assert (drafter.num_drafted, drafter.num_accepted) == (32 + again + 50, again + 50)


def test_an_engine_that_takes_no_guesses_is_told_of() -> None:
    with pytest.warns(UserWarning, match="speculate has no effect: engine 'mock'"):
        session = Session(MockEngine(script=lambda _: EOS), ByteTokens(), speculate=2)
    assert session.generate(make_prompt()).finish_reason == "stop"


@pytest.mark.parametrize("bad", [-1, 17])
def test_a_number_of_guesses_out_of_range_is_refused(bad: int) -> None:
    with pytest.raises(UsageError, match=rf"speculate: expected 0 to 16 tokens, got {bad}"):
        Session(MockEngine(script=lambda _: EOS, draft_rows=4), ByteTokens(), speculate=bad)


def habits(seed: int) -> Callable[[list[Entry]], np.ndarray]:
    """Logits that follow from the last two text tokens and from how often the model looked."""

    def script(entries: list[Entry]) -> np.ndarray:
        text = [e.value for e in entries if e.kind == "text"]
        looked = sum(e.kind != "text" for e in entries)
        rng = np.random.default_rng([seed, looked, *text[-2:]])
        logits = rng.normal(-9, 1, VOCAB).astype(np.float32)
        logits[ALPHABET] = rng.normal(2, 2, len(ALPHABET))
        logits[EOS] = -3
        return logits

    return script


def masses(entries: list[Entry], num_visual: int) -> np.ndarray:
    rng = np.random.default_rng([len(entries), *(e.value for e in entries[-2:])])
    return rng.random(num_visual, np.float32)


POLICIES: dict[str, Any] = {
    "copy": {"policy": "copy"},
    "kv": {"policy": "copy", "inject": "kv"},
    "route": {"policy": "route", "route_percent": 40},
    "route kv": {"policy": "route", "inject": "kv"},
    "random": {"policy": "random"},
    "vision": {"policy": "vision"},
    "never": {"policy": "never", "masses": True, "temperature": 0.7},
    "every 3": {"policy": Policy(name="every", trigger=Trigger(kind="every", every_tokens=3))},
    "entropy": {
        "policy": Policy(
            name="entropy",
            trigger=Trigger(kind="entropy", entropy_nats=1.2, min_gap=2),
            select=Select(kind="route", percent=30),
        )
    },
    "sampled": {"policy": "copy", "temperature": 0.7, "top_p": 0.9, "seed": 3, "num_samples": 3},
    "penalty": {"policy": "copy", "temperature": 0.5, "repetition_penalty": 1.2},
    "stop": {"policy": "copy", "stop": "da"},
    "forced": {"policy": "copy", "forced": [*b"abcabcabd", R]},
    "one token": {"policy": "copy", "max_tokens": 1},
    "two tokens": {"policy": "copy", "max_tokens": 2},
}


def outcome(
    num_guesses: int, options: GenerationOptions, *, max_len: int, prompts: int
) -> tuple[list[list[Any]], list[list[Entry]], int, Session]:
    """(events by sequence without times, KV of the finished slots, steps, the session)."""
    engine = MockEngine(script=habits(5), masses=masses, draft_rows=6, max_len=max_len, max_batch=3)
    session = Session(engine, ByteTokens(), prefill_chunk=7, speculate=num_guesses)
    asked = [make_prompt(f"Q{i}?", grids=((2, 3), (1, 2))[: 1 + i % 2]) for i in range(prompts)]
    found: dict[int, list[Any]] = {}
    for event in session.generate_batch(asked, options):
        found.setdefault(event.sequence, []).append(plain(event))
    assert not engine.kv, "slots are left"
    events = [found[i] for i in sorted(found)]
    return events, sorted(engine.finished, key=repr), len(engine.steps), session


def plain(event: Event) -> Any:
    """What an event says, without times."""
    if isinstance(event, ReinjectEvent):
        event = replace(event, ms=0.0)
        return [getattr(event, f.name) for f in fields(event)][:-2], event.selected.tolist()
    if isinstance(event, DoneEvent):
        facts = event.result.to_json()
        del facts["timing"], facts["reinjections"]
        return facts, event.result.step_masses.tolist()
    return event


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("max_len", [1000, 75])
def test_guesses_change_nothing_but_the_number_of_steps(name: str, max_len: int) -> None:
    options = make_options(**{"max_tokens": 40, **POLICIES[name]})
    plainly = outcome(0, options, max_len=max_len, prompts=3)
    for num_guesses in (1, 5):
        events, kv, steps, session = outcome(num_guesses, options, max_len=max_len, prompts=3)
        assert events == plainly[0]
        assert kv == plainly[1]
        assert steps <= plainly[2]
        drafter = session.drafter
        assert drafter is not None and 0 <= drafter.num_accepted <= drafter.num_drafted
        if options.max_tokens > 2:
            assert 0 < drafter.num_accepted < drafter.num_drafted, "nothing was put to the test"
            assert steps < plainly[2]


def test_guesses_end_where_rows_cost() -> None:
    """Six rows in a step at most, and no more than asked for behind each sequence."""
    options = make_options(max_tokens=40, policy="text")
    engine = MockEngine(script=habits(5), draft_rows=6, max_batch=8)
    session = Session(engine, ByteTokens(), speculate=3)
    session.results([make_prompt()], options)
    assert max(len(step.slots) for step in engine.steps) == 4
    engine.steps.clear()
    session.results([make_prompt(f"Q{i}") for i in range(4)], options)
    assert max(len(step.slots) for step in engine.steps) == 6
    engine.steps.clear()
    session.results([make_prompt(f"Q{i}") for i in range(8)], options)
    full = [step for step in engine.steps if len(set(step.slots)) > 6]
    assert full and all(len(step.slots) == len(set(step.slots)) for step in full)


def test_numbers_that_are_not_finite_end_an_answer_of_guesses() -> None:
    def script(entries: list[Entry]) -> np.ndarray:
        logits = habits(5)(entries)
        if sum(e.kind == "text" for e in entries) > 30:
            logits[7] = np.nan
        return logits

    options = make_options(max_tokens=60, policy="text")
    results = []
    for num_guesses in (0, 4):
        engine = MockEngine(script=script, draft_rows=6)
        session = Session(engine, ByteTokens(), speculate=num_guesses)
        results.append(session.generate(make_prompt(), options))
        assert not engine.kv
    assert [r.finish_reason for r in results] == ["numerical_error"] * 2
    assert results[0].tokens == results[1].tokens


def test_an_earlier_answer_lends_its_words_to_the_next() -> None:
    options = make_options(max_tokens=30, policy="text")
    engine = MockEngine(script=habits(5), draft_rows=4)
    session = Session(engine, ByteTokens(), speculate=3)
    steps = []
    for _ in range(2):
        engine.steps.clear()
        events = list(session.stream(make_prompt(), options))
        assert sum(isinstance(e, TokenEvent) for e in events) == 30
        steps.append(len(engine.steps))
    # Two tokens without anything to guess from, then four a step.
    assert steps[1] == 2 + 7 < steps[0]
