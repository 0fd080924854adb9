"""A fleet on this machine, a load on it, and a replica that is killed.

python -m benchmarks.fleet_drill

Two Ray Serve replicas of the shipped model answer questions; half the answers are streamed. A
third of the way one replica gets SIGKILL, two thirds of the way another bundle is deployed. Every
request that was let in must be answered, as it is when asked alone. Then: whether an image keeps
its replica, and whether a fleet of one grows under load. Exit code 1 where one does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve

from benchmarks.report import publish
from benchmarks.serve_client import NAME, Question, Reply, post, questions, request
from deploy.app import APP, build

ROOT = Path(__file__).parents[1]
HEADER, ATTEMPT = "x-la-trt-replica", "x-la-trt-attempt"
AT_ONCE = 12
_WAIT_S, _STOPPED_S = 300.0, 2.0


def main() -> None:
    """Run the drill, and write it to benchmarks/results or to --output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--backend", choices=("native", "onnx"), default="native")
    parser.add_argument("--output", type=Path, help="a JSON file, in place of benchmarks/results")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="la-trt-fleet-") as work, cluster() as port:
        bundle = Path(work) / NAME
        make_bundle(bundle)
        args = {"engine": str(bundle), "backend": options.backend, "model_name": NAME}
        found = asyncio.run(drill(port, args, options))
    checks = {
        "no accepted request lost": found["kill"]["not_answered"] == 0,
        "answers as alone": found["kill"]["other_answers"] == 0,
        "the killed replica was replaced": found["kill"]["new_replicas"] == 1,
        "the kill cut streams": found["kill"]["streams_cut"] > 0,
        "rolling update without a loss": found["update"]["not_answered"] == 0
        and found["update"]["replicas_kept"] == 0,
        "an image keeps its replica": found["sticky"]["moved"] == 0,
        "both replicas are used": found["sticky"]["replicas"] == 2,
        "the fleet grows under load": found["scaling"]["replicas"] == 2,
    }
    result = found | {"checks": checks}
    rows = [f"| {name} | {'yes' if held else 'NO'} |" for name, held in checks.items()]
    facts = [f"| {part}: {k} | {v} |" for part in found for k, v in found[part].items()]
    if options.output is None:
        table = ["| check | held |", "| --- | --- |", *rows, "", "| | |", "| --- | --- |", *facts]
        publish("fleet_drill", result, "\n".join(table))
    else:
        options.output.write_text(json.dumps(result))
        print(json.dumps(result))
    sys.exit(0 if all(checks.values()) else 1)


@contextlib.contextmanager
def cluster() -> Iterator[int]:
    """Ray and Serve on this machine, for the block; the port on 127.0.0.1."""
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=128 << 20,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()


def make_bundle(path: Path, *flags: str) -> None:
    """The shipped model as a bundle, replaced if it is there."""
    build_it = [sys.executable, "-m", "la_trt.cli", "build", "--output", str(path), *flags]
    subprocess.run([*build_it, "--ckpt", "la_trt/assets/tiny"], check=True, stdout=sys.stderr)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def drill(port: int, args: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """All parts, in turn."""
    asked = questions(options.pictures)
    fields = {"max_tokens": options.max_tokens, "ignore_eos": True}
    await deploy(args | {"min_replicas": 2, "max_replicas": 2})
    alone = [await post(port, request(q, **fields)) for q in asked]
    assert all(reply.status == 200 for reply in alone), [reply.status for reply in alone]
    assert len({reply.headers[HEADER] for reply in alone}) == 2, "one replica has every picture"
    found = {"sticky": await sticky(port, asked)}
    found["kill"] = await kill(port, asked, alone, fields, options.requests)
    found["update"] = await update(port, asked, fields, args, options.requests // 3)
    found["scaling"] = await scaling(port, asked, fields, args)
    return found


async def deploy(args: dict[str, Any]) -> None:
    """Returns when the application runs."""
    await asyncio.to_thread(serve.run, build(args), name=APP)


async def sticky(port: int, asked: list[Question]) -> dict[str, Any]:
    """Where the requests about each picture went, one at a time."""
    replicas: dict[int, set[str]] = {}
    for index, question in enumerate(asked):
        for text in ("What?", question.text, "Where?"):
            body = request(Question(text, question.url, ""), max_tokens=1)
            reply = await post(port, body)
            replicas.setdefault(index, set()).add(reply.headers[HEADER])
    return {
        "pictures": len(asked),
        "moved": sum(len(found) > 1 for found in replicas.values()),
        "replicas": len(set.union(*replicas.values())),
        "pictures_of_each": sorted(
            Counter(name for found in replicas.values() for name in found).values()
        ),
    }


async def kill(
    port: int, asked: list[Question], alone: list[Reply], fields: dict[str, Any], num: int
) -> dict[str, Any]:
    """What becomes of `num` requests, or more, when a replica gets SIGKILL after a third."""
    pids, names = replica_pids(), {reply.headers[HEADER] for reply in alone}
    numbers, answers = itertools.count(), list[tuple[int, Reply]]()
    streams = dict[int, Reply]()  # by number: those that have begun and not ended
    third, killed = asyncio.Event(), asyncio.Event()
    started = time.perf_counter()

    async def client() -> None:
        while (number := next(numbers)) < num or not killed.is_set():
            if number == num // 3:
                third.set()
            index, stream = number % len(asked), number % 2 == 0
            body = request(asked[index], stream=stream, **fields)
            note = functools.partial(streams.__setitem__, number) if stream else None
            answers.append((index, await post(port, body, on_headers=note)))
            streams.pop(number, None)

    async def kill_one() -> list[Reply]:
        # The streams that it cut. A request that the replica has not begun is given to another by
        # Ray itself: only an answer that has begun and not ended shows what the relay does.
        await third.wait()
        held = list[Reply]()
        while not held:
            while {reply.headers[HEADER] for reply in streams.values()} != names:
                await asyncio.sleep(0.005)
            running = dict(streams)
            os.kill(pids[0], signal.SIGSTOP)
            await asyncio.sleep(_STOPPED_S)  # what the other one holds ends
            held = [running[number] for number in running.keys() & streams.keys()]
            os.kill(pids[0], signal.SIGKILL if held else signal.SIGCONT)
        killed.set()
        return held

    async with asyncio.TaskGroup() as tasks:
        killing = tasks.create_task(kill_one())
        for _ in range(AT_ONCE):
            tasks.create_task(client())
    seconds = time.perf_counter() - started
    await until(lambda: len(replica_pids()) == 2)
    replies = [reply for _, reply in answers]
    said = [
        (reply.reasoning, reply.content) == (alone[i].reasoning, alone[i].content)
        for i, reply in answers
        if reply.status == 200
    ]
    after = [await post(port, request(question, max_tokens=1)) for question in asked]
    lost = names - {reply.headers[HEADER] for reply in after}
    return {
        "requests": len(replies),
        "statuses": dict(Counter(str(reply.status) for reply in replies)),
        "not_answered": sum(reply.status not in (200, 429) for reply in replies),
        "other_answers": len(said) - sum(said),
        "streams_cut": sum(reply.headers[HEADER] in lost for reply in killing.result()),
        "asked_again": sum(reply.headers.get(ATTEMPT, "1") != "1" for reply in replies),
        "new_replicas": len(set(replica_pids()) - set(pids)),
        "slowest_s": round(max(reply.seconds for reply in replies), 2),
        "seconds": round(seconds, 1),
    }


async def update(
    port: int, asked: list[Question], fields: dict[str, Any], args: dict[str, Any], num: int
) -> dict[str, Any]:
    """A load while the bundle is replaced and deployed."""
    before, stop = set(replica_pids()), asyncio.Event()
    statuses: Counter[int] = Counter()

    async def client(first: int) -> None:
        number = first
        while not stop.is_set() or sum(statuses.values()) < num:
            reply = await post(port, request(asked[number % len(asked)], **fields))
            statuses[reply.status] += 1
            number += 1

    clients = [asyncio.create_task(client(n)) for n in range(4)]
    await asyncio.to_thread(make_bundle, Path(args["engine"]), "--quant", "int8")
    await deploy(args | {"min_replicas": 2, "max_replicas": 2})
    stop.set()
    await asyncio.gather(*clients)
    return {
        "requests": sum(statuses.values()),
        "not_answered": sum(n for status, n in statuses.items() if status not in (200, 429)),
        "replicas_kept": len(before & set(replica_pids())),
    }


async def scaling(
    port: int, asked: list[Question], fields: dict[str, Any], args: dict[str, Any]
) -> dict[str, Any]:
    """The replicas that a fleet of one has after a load above its target."""
    wanted = {"min_replicas": 1, "max_replicas": 2, "target_requests": 2.0, "scale_delay_s": 1.0}
    await deploy(args | wanted)
    await until(lambda: len(replica_pids()) == 1)
    started, stop = time.perf_counter(), asyncio.Event()

    async def client(number: int) -> None:
        while not stop.is_set():
            await post(port, request(asked[number % len(asked)], **fields))

    clients = [asyncio.create_task(client(n)) for n in range(8)]
    with contextlib.suppress(TimeoutError):
        await until(lambda: len(replica_pids()) == 2)
    seconds = time.perf_counter() - started
    stop.set()
    await asyncio.gather(*clients)
    return {"replicas": len(replica_pids()), "seconds": round(seconds, 1)}


def replica_pids() -> list[int]:
    """The processes of the replicas that live, by the names that Ray gives them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if f"ServeReplica:{APP}:Replica" in " ".join(process.cmdline()):
                found.append(process.pid)
    return sorted(found)


async def until(condition: Any) -> None:
    """Returns when it holds. Raises TimeoutError."""
    async with asyncio.timeout(_WAIT_S):
        while not condition():
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    main()
