"""The C++ session and the Python session tell the same story: tokens, re-injections, masses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build_engines.build import build
from build_engines.quantize import Quant
from la_trt.api import LookAgain
from la_trt.assets import SAMPLE_IMAGES, TINY_CHECKPOINT
from la_trt.files.bundle import open_bundle, write_bundle
from la_trt.processor.image import load_image
from la_trt.processor.template import DEFAULT_TEMPLATE
from la_trt.speculate import NgramDrafter
from tests.cpp import needs_cpp
from tests.embedding.cases import requests
from tests.embedding.make_golden import GOLDEN, traces
from tests.embedding.probe import ask_probe, assert_same, python_trace, write_rgb
from tests.native.helpers import needs_native

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def golden_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / "traces.jsonl").read_text().splitlines()]


@needs_native
def test_python_still_tells_the_golden_traces() -> None:
    for line, golden in zip(traces(GOLDEN), golden_lines(), strict=True):
        now = json.loads(line)
        assert now["request"] == golden["request"]
        assert_same(now["answer"], golden["answer"], json.dumps(golden["request"]["options"]))


@needs_cpp
def test_cpp_tells_the_golden_traces() -> None:
    lines = golden_lines()
    asked = []
    for line in lines:
        request = line["request"]
        images = [{**entry, "rgb": str(GOLDEN / entry["rgb"])} for entry in request["images"]]
        asked.append({**request, "bundle": str(GOLDEN / "bundle"), "images": images})
    for line, answer in zip(lines, ask_probe(asked), strict=True):
        assert_same(answer, line["answer"], json.dumps(line["request"]["options"]))


@needs_cpp
@needs_native
def test_guesses_change_no_answer_and_are_those_of_python() -> None:
    """Each request twice in one session: the second time its answer has been heard."""
    guessing = LookAgain.from_bundle(GOLDEN / "bundle", backend="native", threads=1, speculate=3)
    asked, wanted = [], []
    for line in golden_lines():
        request = line["request"]
        if "sample" in request["options"]:  # Python answers all samples side by side
            continue
        images = [{**entry, "rgb": str(GOLDEN / entry["rgb"])} for entry in request["images"]]
        where = {"bundle": str(GOLDEN / "bundle"), "images": images}
        options = {**request["options"], "speculate": 3}
        asked.append({**request, **where, "options": options, "before": 1})
        drafter = guessing.session.drafter = NgramDrafter(3)
        python_trace(guessing, request, GOLDEN)
        before = drafter.num_drafted, drafter.num_accepted
        answer = python_trace(guessing, request, GOLDEN)
        answer["drafted"] = drafter.num_drafted - before[0]
        answer["accepted"] = drafter.num_accepted - before[1]
        assert_same({k: answer[k] for k in line["answer"]}, line["answer"])
        wanted.append(answer)
    for request, got, want in zip(asked, ask_probe(asked), wanted, strict=True):
        assert_same(got, want, json.dumps(request["options"]))
    assert sum(answer["accepted"] for answer in wanted) > 5 * len(wanted)
    assert any(answer["accepted"] < answer["drafted"] for answer in wanted)


def test_the_golden_traces_cover_every_policy() -> None:
    seen = set()
    for line in golden_lines():
        options = line["request"]["options"]
        for event in line["answer"]["events"]:
            if event["kind"] == "reinject" and not event["skipped"]:
                seen.add((options["policy"], event["inject"]))
    both = {(p, i) for p in ("copy", "route", "random") for i in ("embed", "kv")}
    assert seen == both | {("vision", "embed"), ("vision", "kv")}
    skipped = {
        event["skipped"]
        for line in golden_lines()
        for event in line["answer"]["events"]
        if event["kind"] == "reinject"
    }
    assert skipped >= {"", "max_reflections", "no_visual_tokens"}


@needs_cpp
@needs_native
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_the_shipped_model_answers_alike(quant: Quant, tmp_path: Path) -> None:
    """Real pictures, the shipped tokenizer and template; codes turn where one bit is another."""
    build(TINY_CHECKPOINT, tmp_path / "b", quant=quant, graphs=False)
    model = LookAgain.from_bundle(tmp_path / "b", backend="native", threads=1, max_batch=1)
    tags = model.session.tags
    assert tags.reflection_open is not None and tags.reflection_close is not None
    pictures = []
    for name in ("purple.png", "count.png"):
        image = load_image(SAMPLE_IMAGES / name)
        pictures.append(write_rgb(image, tmp_path / f"{name}.rgb"))
    asked = requests(str(tmp_path / "b"), pictures, tags.reflection_open, tags.reflection_close)
    for request, answer in zip(asked, ask_probe(asked), strict=True):
        assert_same(answer, python_trace(model, request), json.dumps(request["options"]))


@needs_cpp
@needs_native
def test_both_take_the_same_of_several_templates(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Bundles that were built before have every template of their checkpoint."""
    build(tiny_checkpoint, tmp_path / "b", graphs=False)
    one = open_bundle(tmp_path / "b")
    facts = one.manifest
    with write_bundle(
        tmp_path / "several",
        config=facts.config,
        tags=facts.tags,
        limits=facts.limits,
        quant=facts.quant,
        request=facts.request,
    ) as bundle:
        for name in one.names():
            bundle.add_file(name, one.file(name))
        said = json.dumps({"chat_template": f"as JSON says. {DEFAULT_TEMPLATE}"})
        bundle.add_bytes("chat_template.json", said.encode())
        bundle.add_bytes("chat_template.jinja", f"as Jinja says. {DEFAULT_TEMPLATE}".encode())
    model = LookAgain.from_bundle(tmp_path / "several", backend="native", threads=1, max_batch=1)
    assert model.prompt([], "Hi").text.startswith("as JSON says. ")
    asked = requests(str(tmp_path / "several"), [], 0, 0)[:1]
    for request, answer in zip(asked, ask_probe(asked), strict=True):
        assert_same(answer, python_trace(model, request), json.dumps(request["options"]))
