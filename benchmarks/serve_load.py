"""Many clients at once: refusals, clients that leave, and whether answers stay apart.

python -m benchmarks.serve_load

200 requests at once: every accepted one ends, the others get a 429 within 1 s. 500 requests of
which 30 % leave early: every answer is the one to its own picture. A client that leaves frees
its KV within 2 s. Exit code 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from typing import Any

from benchmarks.report import publish
from benchmarks.serve_client import metric, post, questions, request, serving

AT_ONCE = 200
NUM_PICTURES = 50
LEAVING = 0.3


def main() -> None:
    """Run the three, and write them to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("native", "onnx"), default="native")
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args()
    with serving(backend=options.backend) as server:
        result: dict[str, Any] = {
            "at_once": asyncio.run(at_once(server.port)),
            "leaving": asyncio.run(leaving(server.port)),
            "apart": asyncio.run(apart(server.port, options.requests)),
        }
    checks = {
        "every accepted request ended": result["at_once"]["failed"] == 0,
        "429 within 1 s": result["at_once"]["slowest_429_s"] <= 1,
        "KV free within 2 s": result["leaving"]["slowest_s"] <= 2,
        "no answer of another": result["apart"]["others"] == 0,
    }
    result["checks"] = checks
    rows = [f"| {name} | {'yes' if held else 'NO'} |" for name, held in checks.items()]
    publish("serve_load", result, "\n".join(["| check | held |", "| --- | --- |", *rows]))
    sys.exit(0 if all(checks.values()) else 1)


async def at_once(port: int) -> dict[str, Any]:
    """What becomes of 200 requests that are sent together."""
    asked = questions(NUM_PICTURES)
    bodies = [request(asked[i % NUM_PICTURES], max_tokens=64) for i in range(AT_ONCE)]
    replies = await asyncio.gather(*(post(port, body) for body in bodies))
    refused = [r.seconds for r in replies if r.status == 429]
    return {
        "accepted": sum(r.status == 200 for r in replies),
        "refused": len(refused),
        "failed": sum(r.status not in (200, 429) for r in replies),
        "slowest_429_s": round(max(refused, default=0.0), 3),
    }


async def leaving(port: int, times: int = 10) -> dict[str, Any]:
    """Seconds from a client's leaving to KV that nobody uses."""
    found = []
    for _ in range(times):
        body = request(questions(1)[0], max_tokens=3000, ignore_eos=True, stream=True)
        await post(port, body, leave_after=5)
        started = time.perf_counter()
        while await metric(port, "kv_cache_usage_perc") and time.perf_counter() - started < 10:
            await asyncio.sleep(0.01)
        found.append(time.perf_counter() - started)
    return {"slowest_s": round(max(found), 3), "times": times}


async def apart(port: int, num_requests: int) -> dict[str, Any]:
    """How many answers are not the one that their picture gets alone."""
    asked = questions(NUM_PICTURES)
    alone = [await post(port, request(question)) for question in asked]
    rng, places = random.Random(0), asyncio.Semaphore(24)
    others = answered = 0

    async def one(number: int) -> None:
        nonlocal others, answered
        picture = rng.randrange(NUM_PICTURES)
        leave = rng.randrange(0, 60) if rng.random() < LEAVING else None
        stream = leave is not None or number % 2 == 0
        body = request(asked[picture], stream=stream)
        async with places:
            reply = await post(port, body, leave_after=leave)
        if leave is None:
            assert reply.status == 200, reply.status
            answered += 1
            expected = alone[picture]
            said = (reply.reasoning, reply.content)
            others += said != (expected.reasoning, expected.content)

    await asyncio.gather(*(one(number) for number in range(num_requests)))
    right = sum(r.content == q.answer for r, q in zip(alone, asked, strict=True))
    distinct = len({r.reasoning for r in alone})
    return {
        "requests": num_requests,
        "answered": answered,
        "others": others,
        "pictures": NUM_PICTURES,
        "distinct_answers": distinct,
        "right_alone": right,
    }


if __name__ == "__main__":
    main()
