"""The model repository that la-trt build writes, and its model.py over a fake of Triton."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import text_format

from la_trt import LookAgain
from la_trt.cli.app import run
from tests.triton import triton_python_backend_utils as fake

NAME = "tiny-model"
BACKEND = "native" if find_spec("la_trt._native") else "onnx"
WAIT_S = 60.0
Request = fake.InferenceRequest


def module_at(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's own messages, from its client, without the client."""
    client = find_spec("tritonclient")
    if client is None or client.submodule_search_locations is None:
        pytest.skip("tritonclient has Triton's messages; make test installs it")
    path = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    return module_at(path, "model_config_pb2")


@pytest.fixture(scope="module")
def repository(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("triton")
    arguments = ["build", "--ckpt", str(tiny_checkpoint), "--output", str(root / NAME)]
    assert run([*arguments, "--triton", str(root / "models")]) == 0
    return root / "models"


@pytest.fixture(scope="module")
def config(repository: Path, schema: ModuleType) -> Any:
    return text_format.Parse((repository / NAME / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.fixture
def model(repository: Path) -> Iterator[Any]:
    """model.py from the repository, initialized as Triton does it."""
    sys.modules["triton_python_backend_utils"] = fake
    try:
        loaded = module_at(repository / NAME / "1" / "model.py", "triton_model")
    finally:
        del sys.modules["triton_python_backend_utils"]
    parameters = {"backend": {"string_value": BACKEND}, "threads": {"string_value": "1"}}
    made = loaded.TritonPythonModel()
    made.initialize(
        {
            "model_config": json.dumps({"name": NAME, "parameters": parameters}),
            "model_repository": str(repository / NAME),
            "model_version": "1",
        }
    )
    yield made
    made.finalize()


def ask(model: Any, *requests: Request) -> list[tuple[str, Any]]:
    """(text, result) of each request's answer, or ('', message of its error)."""
    assert model.execute(list(requests)) is None, "a decoupled model returns nothing"
    answers = []
    for request in requests:
        assert request.sender.done.wait(WAIT_S), "no final response"
        last = request.sender.responses[-1]
        if last.error() is not None:
            answers.append(("", last.error().message()))
            continue
        texts = ["", ""]
        for response in request.sender.responses:
            named = {t.name(): t.as_numpy()[0].decode() for t in response.output_tensors()}
            texts = [texts[0] + named["TEXT"], texts[1] + named["RESULT"]]
        answers.append((texts[0], json.loads(texts[1])))
    return answers


def options(**given: Any) -> list[bytes]:
    return [json.dumps({"max_tokens": 8} | given).encode()]


def test_triton_can_read_the_configuration(config: Any, schema: ModuleType) -> None:
    assert (config.name, config.backend, config.max_batch_size) == (NAME, "python", 0)
    assert config.model_transaction_policy.decoupled
    inputs = {i.name: (i.data_type, list(i.dims), i.optional) for i in config.input}
    assert inputs == {
        "PROMPT": (schema.TYPE_STRING, [1], False),
        "IMAGES": (schema.TYPE_STRING, [-1], True),
        "OPTIONS": (schema.TYPE_STRING, [1], True),
    }
    assert [o.name for o in config.output] == ["TEXT", "RESULT"]
    assert config.parameters["backend"].string_value == "onnx"


def test_answers_are_those_of_python(model: Any, repository: Path, picture: Path) -> None:
    own = LookAgain.from_bundle(repository / NAME / "1" / "bundle", backend=BACKEND)  # type: ignore[arg-type]
    image = picture.read_bytes()
    asked = {
        policy: Request(PROMPT=[b"How many?"], IMAGES=[image], OPTIONS=options(policy=policy))
        for policy in ("copy", "route", "never")
    }
    for policy, (text, result) in zip(asked, ask(model, *asked.values()), strict=True):
        expected = own.generate([image], "How many?", policy=policy, max_tokens=8)
        assert text == expected.text and result["tokens"] == expected.tokens
        assert result["policy"] == policy


def test_a_stream_adds_up_to_the_whole(model: Any, picture: Path) -> None:
    image = picture.read_bytes()
    whole, streamed = (
        Request(PROMPT=[b"Where?"], IMAGES=[image], OPTIONS=options(stream=stream))
        for stream in (False, True)
    )
    answers = ask(model, whole, streamed)
    assert answers[0][0] == answers[1][0] == answers[1][1]["text"] != ""
    assert len(whole.sender.responses) == 1 < len(streamed.sender.responses)


def test_images_and_options_may_be_missing(model: Any) -> None:
    _, result = ask(model, Request(PROMPT=[b"Hi"], OPTIONS=options(max_tokens=3)))[0]
    assert result["usage"]["completion_tokens"] == 3 and result["usage"]["visual_tokens"] == 0


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"PROMPT": [b""]}, "E_PROMPT"),
        ({"PROMPT": [b"\xff"]}, "E_PROMPT: PROMPT: not UTF-8"),
        ({"PROMPT": [b"a"], "IMAGES": [b"no image"]}, "E_IMAGE"),
        ({"PROMPT": [b"a"], "OPTIONS": [b"{"]}, "OPTIONS: not valid JSON"),
        ({"PROMPT": [b"a"], "OPTIONS": [b"[]"]}, "expected a JSON object"),
        ({"PROMPT": [b"a"], "OPTIONS": [b'{"frob": 1}']}, "unknown 'frob'"),
        ({"PROMPT": [b"a"], "OPTIONS": [b'{"seed": true}']}, "seed has a wrong type"),
        ({"PROMPT": [b"a"], "OPTIONS": [b'{"policy": "/etc/x.yaml"}']}, "E_POLICY"),
        ({"PROMPT": [b"a"], "OPTIONS": [b'{"max_tokens": 99999999}']}, "E_CONTEXT_LENGTH"),
    ],
)
def test_a_bad_request_ends_only_itself(model: Any, inputs: Any, said: str) -> None:
    good = Request(PROMPT=[b"Hi"], OPTIONS=options(max_tokens=3))
    (_, message), (_, result) = ask(model, Request(**inputs), good)
    assert said in message and "/1/bundle" not in message
    assert result["usage"]["completion_tokens"] == 3


def test_who_cancels_gets_no_more_and_holds_nobody_up(model: Any) -> None:
    leaving = Request(PROMPT=[b"Hi"], OPTIONS=options(max_tokens=3000))
    leaving.sender.cancelled = True
    assert ask_with(model, leaving) == 3
    assert not leaving.sender.responses


def ask_with(model: Any, leaving: Request) -> int:
    """Tokens of an answer that came while another request was cancelled."""
    model.execute([leaving])
    _, result = ask(model, Request(PROMPT=[b"Hi"], OPTIONS=options(max_tokens=3)))[0]
    return int(result["usage"]["completion_tokens"])


def test_the_model_is_replaced_whole_and_nothing_else(
    repository: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert sorted(p.name for p in (repository / NAME).iterdir()) == ["1", "config.pbtxt"]
    other = tmp_path / "models" / NAME
    other.mkdir(parents=True)
    (other / "mine.txt").write_text("keep me")
    arguments = ["build", "--ckpt", str(tiny_checkpoint), "--output", str(tmp_path / NAME)]
    assert run([*arguments, "--triton", str(tmp_path / "models")]) == 5
    assert (other / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("output", ["a model", ".hidden"])
def test_a_name_that_triton_cannot_have_is_refused_before_the_build(
    output: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["build", "--ckpt", str(tiny_checkpoint), "--output", str(tmp_path / output)]
    assert run([*arguments, "--triton", str(tmp_path / "models")]) == 2
    assert list(tmp_path.iterdir()) == []
