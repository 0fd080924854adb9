"""The server's throughput at 8 requests against 1, and the first token beside a long prefill.

python -m benchmarks.serve_speed --threads 2

Aimed at: 4 times the throughput, and a first token at most 3 times as late as alone. Answers
are compared first: those of 8 at once must be those of each alone.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from benchmarks.serve_client import Question, Reply, post, questions, request, serving

AT_ONCE = 8
WARM_UP_TOKENS = 16
NO_CACHES = ("--no-prefix-cache", "--vision-cache-mib", "0")


def main() -> None:
    """Measure both, and write them to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("native", "onnx"), default="native")
    parser.add_argument("--threads", type=int, default=2, help="of the engine")
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one unmeasured")
    parser.add_argument("--max-tokens", type=int, default=128, help="of each answer, exactly")
    parser.add_argument("--alone", type=int, default=AT_ONCE, metavar="N",
                        help="of the 8 questions, how many are asked one by one")  # fmt: skip
    parser.add_argument("--engine", type=Path, help="a bundle, in place of the shipped model's")
    parser.add_argument("--name", default="serve_speed", help="of the files in benchmarks/results")
    options = parser.parse_args()
    flags = ("--threads", str(options.threads), *NO_CACHES)
    with serving(*flags, backend=options.backend, engine=options.engine) as server:
        result: dict[str, Any] = {
            "threads": options.threads,
            "max_tokens": options.max_tokens,
            "throughput": asyncio.run(throughput(server.port, options)),
            "ttft": asyncio.run(ttft(server.port, options)),
        }
    publish(options.name, result, table(result))


async def throughput(port: int, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of 1 and of 8 at once, in turn, each request about another picture.

    A round whose answers at once are not those alone is no round.
    """
    asked = questions(AT_ONCE)
    of = {1: asked[: options.alone], AT_ONCE: asked}
    fields = {"max_tokens": options.max_tokens, "ignore_eos": True}
    for num in (1, AT_ONCE):
        await answers(port, of[num], num, {**fields, "max_tokens": WARM_UP_TOKENS})
    rates: dict[int, list[float]] = {1: [], AT_ONCE: []}
    for _ in range(options.rounds):
        texts = []
        for num, found in rates.items():
            replies, seconds = await answers(port, of[num], num, fields)
            found.append(sum(r.num_tokens for r in replies) / seconds)
            print(f"  {num} at once: {found[-1]:.1f} tok/s", file=sys.stderr)
            texts.append([(r.reasoning, r.content) for r in replies])
        same = [alone == at_once for alone, at_once in zip(*texts, strict=False)]
        assert all(same), f"answers depend on what else runs: {same}"
    ratios = [b / a for a, b in zip(rates[1], rates[AT_ONCE], strict=True)]
    return {
        "tok_s_1": summary(rates[1]),
        f"tok_s_{AT_ONCE}": summary(rates[AT_ONCE]),
        "ratio": summary(ratios),
        "aimed_at": 4.0,
    }


async def answers(
    port: int, asked: list[Question], num: int, fields: dict[str, Any]
) -> tuple[list[Reply], float]:
    """The answers to all questions, `num` of them at any time, and the seconds that they took."""
    places = asyncio.Semaphore(num)

    async def one(question: Question) -> Reply:
        async with places:
            return await post(port, request(question, **fields))

    started = time.perf_counter()
    replies = await asyncio.gather(*(one(question) for question in asked))
    return replies, time.perf_counter() - started


async def ttft(port: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first token of a short request, alone and while a long prompt runs."""
    short = request(questions(1)[0], max_tokens=1, stream=True, ignore_eos=True)
    long = request("~" * 3500, max_tokens=1, ignore_eos=True)
    idle, busy = [], []
    for number in range(options.rounds + 1):
        first = (await post(port, short)).first_s
        running = asyncio.create_task(post(port, long))
        await asyncio.sleep(0.15)  # the long prompt's turn comes first
        beside = (await post(port, short)).first_s
        overlapped = not running.done()
        assert (await running).status == 200 and first is not None and beside is not None
        if number and overlapped:
            idle.append(first)
            busy.append(beside)
            print(f"  first token: alone {first:.3f} s, beside a long prefill {beside:.3f} s",
                  file=sys.stderr)  # fmt: skip
    assert busy, "the long prompt was over each time: there was nothing to measure"
    ratios = [b / a for a, b in zip(idle, busy, strict=True)]
    return {
        "idle_ms": summary([1e3 * s for s in idle]),
        "beside_ms": summary([1e3 * s for s in busy]),
        "ratio": summary(ratios),
        "aimed_at": 3.0,
    }


def summary(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def table(result: dict[str, Any]) -> str:
    """Both measurements as a table."""
    rows = ["| | median | least | greatest | aimed at |", "| --- | --- | --- | --- | --- |"]
    for part in ("throughput", "ttft"):
        found = result[part]
        for name, s in found.items():
            if name != "aimed_at":
                aim = found["aimed_at"] if name == "ratio" else ""
                rows.append(f"| {part} {name} | {s['median']} | {s['min']} | {s['max']} | {aim} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
