"""Many at once: places, batching, leaving early, fairness, faults and the drain."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from la_trt.errors import MachineError
from la_trt.serve.loop import MAX_FAILURES
from la_trt.serve.settings import HttpLimits
from tests.serve.running import (
    Running,
    ask,
    chat,
    open_bundle,
    png,
    running,
    wait_until,
)

CHAT = "/v1/chat/completions"
PATIENT = HttpLimits(header_timeout_s=60.0, body_timeout_s=60.0)
COLOURS = ("red", "blue", "green", "black", "orange", "purple", "brown", "pink")


@pytest.fixture
def server(bundle: Path, backend: str) -> Iterator[Running]:
    with running(lambda: open_bundle(bundle, backend, max_batch=4), max_waiting=16) as found:
        yield found


def test_of_200_at_once_the_places_are_filled_and_the_rest_refused_at_once(
    bundle: Path, backend: str
) -> None:
    with (
        running(lambda: open_bundle(bundle, backend, max_batch=8), http=PATIENT) as server,
        ThreadPoolExecutor(200) as pool,
    ):
        server.engine.hold()
        body = json.dumps(chat(max_tokens=3)).encode()
        answers = [pool.submit(server.request, "POST", CHAT, body) for _ in range(200)]
        # The engine stands still: whoever is refused does not wait for it.
        wait_until(lambda: sum(a.done() for a in answers) == 200 - 72)
        assert server.metric("num_requests_waiting") >= 64
        refused = [a.result() for a in answers if a.done()]
        assert {status for status, _, _ in refused} == {429}
        assert all(headers["retry-after"] == "1" for _, headers, _ in refused)
        server.engine.let_go()
        accepted = [a.result() for a in answers if a.result()[0] != 429]
    assert [status for status, _, _ in accepted] == [200] * 72
    contents = {json.loads(body)["choices"][0]["message"]["content"] for _, _, body in accepted}
    assert len(contents) == 1, "the same greedy answer in every batch"


def test_requests_join_and_leave_the_running_batch(server: Running) -> None:
    with ThreadPoolExecutor(4) as pool:
        long = [pool.submit(server.post, CHAT, chat(max_tokens=400)) for _ in range(2)]
        wait_until(lambda: server.metric("num_requests_running") == 2)
        steps = server.engine.num_steps
        short = pool.submit(server.post, CHAT, chat(max_tokens=2)).result()
        assert short[0] == 200
        assert not any(answer.done() for answer in long), "the short one did not wait for them"
        assert server.engine.num_steps > steps
        assert [answer.result()[0] for answer in long] == [200, 200]
    # Two sequences of 400 tokens in steps of both, not one after the other.
    assert server.engine.num_steps < 600


def test_a_long_prompt_lets_decoding_and_short_prompts_through(bundle: Path, backend: str) -> None:
    with (
        running(
            lambda: open_bundle(bundle, backend, max_batch=4), prefill_chunk=16, prefix_cache=False
        ) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        # Each byte is about a token: 2,000 tokens take some 125 steps of 16. Without a pause the
        # tiny model takes them all in the time that a busy machine needs to accept a request.
        server.engine.pause_s = 0.02
        long = pool.submit(server.post, CHAT, chat(messages=ask("~" * 2000), max_tokens=1))
        wait_until(lambda: server.engine.num_steps >= 3)
        status, answer = server.post(CHAT, chat(messages=ask("Hi"), max_tokens=3))
        assert status == 200 and answer["usage"]["completion_tokens"] == 3
        assert not long.done(), "the short prompt had to wait for the long one"
        assert long.result()[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_kv(server: Running, stream: bool) -> None:
    body = json.dumps(chat(max_tokens=3000, stream=stream)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    before = server.metric("requests_aborted_total")
    leaving = socket.create_connection(("127.0.0.1", server.server.port))
    leaving.sendall(head + body)
    wait_until(lambda: server.metric("kv_cache_usage_perc") > 0)
    leaving.close()
    wait_until(lambda: server.metric("kv_cache_usage_perc") == 0)
    wait_until(lambda: server.metric("requests_aborted_total") == before + 1)
    assert server.metric("num_requests_running") == 0


def test_aborted_requests_leave_every_answer_to_its_own_image(server: Running) -> None:
    def question(i: int) -> dict[str, Any]:
        image = png(COLOURS[i % len(COLOURS)], (56 + 28 * (i % 3), 56))
        return chat(
            messages=ask(f"Question {i % 5}?", image), max_tokens=3, logprobs=True, top_logprobs=5
        )

    kinds = len(COLOURS) * 3 * 5
    alone = {}
    for i in range(0, kinds, 4):
        alone[i] = fingerprint(server.post(CHAT, question(i)))

    def run(i: int) -> object:
        if i % 10 < 3:
            body = json.dumps(question(i)).encode()
            with socket.create_connection(("127.0.0.1", server.server.port)) as leaving:
                head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                leaving.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            return None
        return server.post(CHAT, question(4 * i % kinds))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(run, range(60)))
    for i, answer in enumerate(answers):
        if answer is not None:
            own = 4 * i % kinds
            distances = {k: np.abs(fingerprint(answer) - v).max() for k, v in alone.items()}
            nearest = min(distances.values())
            # Some questions about the same picture come out alike; never one about another.
            assert distances[own] <= nearest + 1e-5, (own, distances)
    apart = [np.abs(a - b).max() for a, b in combinations(alone.values(), 2)]
    assert np.median(apart) > 1e-3, "the answers would not tell the questions apart"
    wait_until(lambda: server.metric("kv_cache_usage_perc") == 0)


def fingerprint(answer: Any) -> np.ndarray:
    """The log-probabilities of an answer's tokens: they depend on every pixel."""
    status, value = answer
    assert status == 200, value
    content = value["choices"][0]["logprobs"]["content"]
    return np.array([top["logprob"] for token in content for top in token["top_logprobs"]])


def test_a_repeated_image_is_seen_once(server: Running) -> None:
    for text in ("One?", "Two?", "One?"):
        assert server.post(CHAT, chat(messages=ask(text, png("navy"))))[0] == 200
    assert server.engine.num_vision == 1
    assert server.post(CHAT, chat(messages=ask("One?", png("navy", (84, 56)))))[0] == 200
    assert server.engine.num_vision == 2, "another size is another image"
    assert server.metric("mm_cache_hits_total") == 2


def test_a_failing_step_ends_its_requests_with_a_500_and_nothing_else(server: Running) -> None:
    server.engine.fail_next = RuntimeError("secret words of the prompt")
    status, answer = server.post(CHAT, chat())
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(answer)
    assert server.post(CHAT, chat())[0] == 200
    assert server.request("GET", "/health")[0] == 200


@pytest.mark.parametrize("good_steps", [0, 5], ids=["prefill", "decoding"])
def test_a_step_without_memory_ends_its_requests_and_no_other(
    server: Running, good_steps: int
) -> None:
    server.engine.fail_after = good_steps
    server.engine.fail_next = MachineError("the GPU's memory is full", name="E_MEMORY")
    status, answer = server.post(CHAT, chat(max_tokens=20))
    assert (status, answer["error"]["code"]) == (503, "overloaded")
    assert server.metric("kv_cache_usage_perc") == 0
    assert server.post(CHAT, chat())[0] == 200


def test_an_engine_that_fails_again_and_again_is_said_to_be_dead(
    bundle: Path, backend: str
) -> None:
    with running(lambda: open_bundle(bundle, backend)) as server:
        for _ in range(MAX_FAILURES):
            assert server.request("GET", "/health")[0] == 200
            server.engine.fail_next = MachineError("CUDA: illegal address", name="E_CUDA")
            status, answer = server.post(CHAT, chat())
            assert (status, answer["error"]["code"]) == (500, "internal_error")
        status, _, body = server.request("GET", "/health")
        assert (status, json.loads(body)["error"]["code"]) == (503, "engine_stopped")
        assert server.post(CHAT, chat())[0] == 503


def test_the_drain_answers_what_runs_and_refuses_what_comes(server: Running) -> None:
    server.engine.hold()
    with ThreadPoolExecutor(1) as pool:
        running_one = pool.submit(server.post, CHAT, chat(max_tokens=20))
        desk = server.server.service.desk
        assert desk is not None
        wait_until(lambda: desk.num_places_taken == 1)
        server.server.stop()
        wait_until(lambda: desk.draining)
        status, headers, body = server.request("GET", "/health/ready")
        assert (status, json.loads(body)["error"]["code"]) == (503, "draining")
        status, answer = server.post(CHAT, chat())
        assert (status, answer["error"]["code"]) == (503, "draining")
        assert headers["retry-after"]
        server.engine.let_go()
        status, answer = running_one.result()
    assert (status, answer["usage"]["completion_tokens"]) == (200, 20)


def test_a_drain_that_takes_too_long_ends_the_rest_with_a_503(bundle: Path, backend: str) -> None:
    with running(lambda: open_bundle(bundle, backend), drain_s=0.2, cuts_off=True) as server:
        server.engine.hold()
        with ThreadPoolExecutor(1) as pool:
            cut_off = pool.submit(server.post, CHAT, chat(max_tokens=20))
            desk = server.server.service.desk
            assert desk is not None
            wait_until(lambda: desk.num_places_taken == 1)
            server.server.stop()
            status, answer = cut_off.result()
        assert (status, answer["error"]["code"]) == (503, "draining")


def test_what_waits_when_the_drain_ends_starts_no_more(bundle: Path, backend: str) -> None:
    options = {"drain_s": 0.2, "cuts_off": True, "max_waiting": 20}
    with running(lambda: open_bundle(bundle, backend, max_batch=2), **options) as server:
        _, alone = server.post(CHAT, chat())
        server.engine.hold()
        with ThreadPoolExecutor(12) as pool:  # 4 have their turn, 8 wait for it
            asked = [pool.submit(server.post, CHAT, chat(max_tokens=20)) for _ in range(12)]
            desk = server.server.service.desk
            assert desk is not None
            wait_until(lambda: desk.num_places_taken == 12)
            server.server.stop()
            answers = [one.result() for one in asked]
        num_started = server.metric("prompt_tokens_total") / alone["usage"]["prompt_tokens"]
    assert [(s, a["error"]["code"]) for s, a in answers] == [(503, "draining")] * 12
    assert num_started == 1 + 4


def test_no_thread_left_is_a_503(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> NoReturn:
        raise RuntimeError("can't start new thread")

    desk = server.server.service.desk
    assert desk is not None
    monkeypatch.setattr(desk._preparing, "submit", full)
    status, answer = server.post(CHAT, chat())
    assert (status, answer["error"]["code"]) == (503, "overloaded")
    monkeypatch.undo()
    assert server.post(CHAT, chat())[0] == 200


def test_an_engine_out_of_memory_refuses_and_goes_on(bundle: Path, backend: str) -> None:
    with running(lambda: open_bundle(bundle, backend, max_batch=2), prefix_cache=False) as server:
        real, lock = server.engine._engine.alloc, threading.Lock()
        failing = [True]

        def alloc(capacity: int) -> int:
            with lock:
                if failing[0]:
                    raise MachineError("no memory at 0x7f", name="E_MEMORY")
            return int(real(capacity))

        server.engine.__dict__["alloc"] = alloc
        status, answer = server.post(CHAT, chat())
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        assert "0x7f" not in json.dumps(answer)
        failing[0] = False
        assert server.post(CHAT, chat())[0] == 200
