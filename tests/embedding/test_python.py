"""The Python entry in a program of one's own: from a path, sync and asyncio; the examples run."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

from build_engines.build import build
from la_trt import LookAgain
from la_trt.errors import InputError, UsageError
from la_trt.events import DoneEvent, TokenEvent
from tests.native.helpers import needs_native

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
QUESTION = "How many red circles are there?"


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedding") / "bundle"
    build(tiny_checkpoint, path)
    return path


@pytest.fixture
def model(bundle: Path) -> LookAgain:
    return LookAgain(bundle)


def test_a_path_brings_engine_and_processor(model: LookAgain, bundle: Path) -> None:
    assert model.engine.limits.name == LookAgain.from_bundle(bundle).engine.limits.name
    again = LookAgain(model.engine, model.processor)
    assert again.engine is model.engine
    with pytest.raises(UsageError, match="Processor"):
        LookAgain(model.engine)
    with pytest.raises(UsageError, match="alone"):
        LookAgain(str(bundle), model.processor)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "foo"}, "backend: expected one of"),
        ({"threads": 0}, "threads: expected an integer from 1"),
        ({"threads": "2"}, "threads: expected an integer from 1"),
    ],
)
def test_a_wrong_option_is_named(bundle: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        LookAgain.from_bundle(bundle, **options)


@pytest.mark.parametrize("images", ["photo.jpg", Path("photo.jpg"), b"bytes", None])
def test_images_are_a_list(model: LookAgain, images: Any) -> None:
    with pytest.raises(InputError, match="expected a list of images"):
        model.generate(images, QUESTION)


def test_asyncio_answers_as_sync_does(model: LookAgain, picture: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "policy": "copy", "ignore_eos": True}
    want = model.generate([picture], QUESTION, **options)

    async def ask() -> None:
        seen = [e async for e in model.astream([picture], QUESTION, **options)]
        assert "".join(e.text for e in seen if isinstance(e, TokenEvent)) == want.text
        assert isinstance(seen[-1], DoneEvent) and seen[-1].result.tokens == want.tokens
        many = await asyncio.gather(
            *(model.agenerate([picture], QUESTION, seed=i, **options) for i in range(3))
        )
        assert [r.tokens for r in many] == [want.tokens] * 3
        with pytest.raises(UsageError):
            await model.agenerate([picture], QUESTION, max_tokens=0)

    asyncio.run(ask())


def test_leaving_a_stream_early_frees_its_slot(model: LookAgain, picture: Path) -> None:
    async def ask() -> None:
        for _ in range(model.engine.limits.max_batch + 1):
            async with aclosing(model.astream([picture], QUESTION, max_tokens=50)) as events:
                assert isinstance(await anext(events), TokenEvent)
        task = asyncio.create_task(
            model.agenerate([picture], QUESTION, max_tokens=400, ignore_eos=True)
        )
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await model.agenerate([picture], QUESTION, max_tokens=2)).tokens

    asyncio.run(ask())
    slots = [model.engine.alloc(8) for _ in range(model.engine.limits.max_batch)]
    assert len(set(slots)) == model.engine.limits.max_batch


FORKS = """
import asyncio, os, sys
from pathlib import Path
from la_trt import LookAgain

model = LookAgain.from_bundle(sys.argv[1], backend="native", threads=2)
ask = lambda: asyncio.run(model.agenerate([Path(sys.argv[2])], "How many?", max_tokens=4))
want = ask().tokens
child = os.fork()
if not child:
    os._exit(ask().tokens != want)
sys.exit(os.waitpid(child, 0)[1] or ask().tokens != want)
"""


@needs_native
def test_a_forked_child_awaits_answers_too(bundle: Path, picture: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(bundle), str(picture)]
    with subprocess.Popen(command, start_new_session=True) as parent:
        try:
            assert parent.wait(timeout=60) == 0
        finally:
            with suppress(ProcessLookupError):  # both have ended
                os.killpg(parent.pid, signal.SIGKILL)


def test_the_example_prints_the_answer(bundle: Path, picture: Path, model: LookAgain) -> None:
    command = [sys.executable, EXAMPLES / "ask.py", bundle, picture, QUESTION, "text"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == model.generate([picture], QUESTION, policy="text").text + "\n"
    command[2] = bundle / "nothing"
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4
    assert done.stderr.startswith("la-trt: error[E_MISSING_FILE]")


def test_the_example_service_streams(bundle: Path, picture: Path, model: LookAgain) -> None:
    want = model.generate([picture], QUESTION)
    image = base64.b64encode(picture.read_bytes()).decode()
    requests = [{"question": QUESTION, "image": image}, {"question": 3}, {"question": QUESTION}]

    async def talk(port: int, request: dict[str, Any]) -> list[dict[str, Any]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        writer.write(json.dumps(request).encode() + b"\n")
        lines = (await reader.read()).splitlines()
        writer.close()
        await writer.wait_closed()
        return [json.loads(line) for line in lines]

    async def all_at_once(port: int) -> list[list[dict[str, Any]]]:
        return await asyncio.gather(*(talk(port, request) for request in requests))

    command = [sys.executable, str(EXAMPLES / "service.py"), str(bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            port = int(service.stdout.readline().rsplit(":", 1)[1])
            asked, refused, blind = asyncio.run(all_at_once(port))
        finally:
            service.terminate()
    assert "".join(line.get("text", "") for line in asked) == want.text
    assert asked[-1]["result"]["tokens"] == want.tokens
    assert refused == [{"error": "E_REQUEST"}]
    assert blind[-1]["result"]["usage"]["visual_tokens"] == 0
