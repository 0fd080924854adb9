"""The growth of the server's memory under a mixed load.

python -m benchmarks.serve_memory --minutes 30

Pictures that come again and that do not, texts, streams, several answers, errors and clients
that leave. Aimed at: at most 5 MiB of anonymous memory for 1,000 requests, as the slope of a
line through the second half of the samples (caches and buffers fill in the first).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from typing import Any

import numpy as np

from benchmarks.report import memory_bytes, publish
from benchmarks.serve_client import Question, post, questions, request, serving

AIMED_AT_MIB = 5.0
AT_ONCE = 12
MIB = 1 << 20


def main() -> None:
    """Load the server for as long as is asked, and write the slope to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("native", "onnx"), default="native")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    with serving("--vision-cache-mib", "8", backend=options.backend) as server:
        samples = asyncio.run(load(server.port, server.process.pid, options.minutes * 60))
    half = samples[len(samples) // 2 :]
    assert len(half) >= 3, "too short to tell: give it more --minutes"
    numbers, sizes = np.array([n for n, _ in half]), np.array([b for _, b in half])
    slope = float(np.polyfit(numbers, sizes, 1)[0]) * 1000 / MIB
    result: dict[str, Any] = {
        "minutes": options.minutes,
        "requests": samples[-1][0],
        "first_mib": round(samples[0][1] / MIB, 1),
        "last_mib": round(samples[-1][1] / MIB, 1),
        "growth_mib_per_1000": round(slope, 3),
        "aimed_at": AIMED_AT_MIB,
    }
    rows = [f"| {key} | {value} |" for key, value in result.items()]
    publish("serve_memory", result, "\n".join(["| | |", "| --- | --- |", *rows]))


async def load(port: int, pid: int, seconds: float) -> list[tuple[int, int]]:
    """(requests so far, anonymous bytes) about a hundred times."""
    asked, rng = questions(40), random.Random(0)
    samples: list[tuple[int, int]] = []
    num_sent, deadline = 0, time.monotonic() + seconds

    async def client() -> None:
        nonlocal num_sent
        while time.monotonic() < deadline:
            num_sent += 1
            body, leave = mixed(asked, rng)
            await post(port, body, leave_after=leave)

    async def watch() -> None:
        while time.monotonic() < deadline:
            samples.append((num_sent, memory_bytes(pid)["RssAnon"]))
            await asyncio.sleep(seconds / 100)

    await asyncio.gather(watch(), *(client() for _ in range(AT_ONCE)))
    return samples


def mixed(asked: list[Question], rng: random.Random) -> tuple[dict[str, Any], int | None]:
    """A request, and after how many chunks its client leaves."""
    kind = rng.random()
    question = asked[rng.randrange(len(asked))]
    if kind < 0.1:
        return request(question, temperature=-1), None
    if kind < 0.2:
        return request(Question("What?", "data:image/png;base64,AAAA", "")), None
    if kind < 0.4:
        return request(question, stream=True, max_tokens=200), rng.randrange(0, 40)
    if kind < 0.5:
        return request(question, n=3, temperature=1, max_tokens=16), None
    if kind < 0.6:
        return request("word " * rng.randrange(1, 200), max_tokens=16), None
    policy = rng.choice(("copy", "route", "text", "never"))
    fields = {"stream": rng.random() < 0.5, "max_tokens": rng.randrange(1, 160)}
    return request(question, lookagain={"policy": policy}, **fields), None


if __name__ == "__main__":
    main()
