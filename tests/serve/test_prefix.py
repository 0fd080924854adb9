"""A kept prompt prefix changes no answer, and never stands in for another image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from la_trt.api import LookAgain, make_options
from la_trt.batch import Request
from la_trt.events import DoneEvent, Result
from la_trt.reattention.policy import Policy, Select, Trigger
from la_trt.serve.prefix import MIN_PREFIX, PrefixSlots
from la_trt.serve.vision import EmbeddingCache, VisionTower, image_digests
from tests.serve.running import open_bundle

BACKENDS = ["native", "onnx"]
EVERY_SECOND = Policy(
    name="often", trigger=Trigger(kind="every", every_tokens=2), select=Select(kind="route")
)
OPTIONS: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True, "policy": EVERY_SECOND}


@pytest.fixture(scope="module", params=BACKENDS)
def model(request: pytest.FixtureRequest, bundle: Path) -> LookAgain:
    if request.param == "native":
        pytest.importorskip("la_trt._native")
    return open_bundle(bundle, request.param, max_batch=2)


@pytest.fixture(scope="module")
def reference(model: LookAgain, bundle: Path) -> LookAgain:
    """Another engine of the same kind, which keeps nothing."""
    return open_bundle(bundle, model.engine.limits.name, max_batch=1)


class Asker:
    """Asks one question after the other through one set of slots."""

    def __init__(self, model: LookAgain) -> None:
        self.model = model
        self.slots = PrefixSlots(model.engine)
        self.batch = model.session.open_batch(slots=self.slots, prefill_chunk=8)
        self.tower = VisionTower(model.engine, EmbeddingCache(1 << 20))
        self.index = 0

    def ask(self, text: str, *colours: str) -> tuple[Result, int]:
        images = [Image.new("RGB", (112, 84), colour) for colour in colours]
        prompt = self.model.prompt(images, text, max_tokens=8)
        digests = image_digests(prompt)
        request = Request(
            prompt=prompt,
            options=make_options(**OPTIONS),
            first_index=self.index,
            visual_embeds=self.tower.see(prompt, digests).embeds,
            image_digests=digests,
        )
        self.index += 1
        self.batch.add(request)
        done = None
        while self.batch.busy:
            for event in self.batch.step():
                done = event if isinstance(event, DoneEvent) else done
        assert done is not None
        return done.result, request.num_cached

    def close(self) -> None:
        self.batch.close()
        self.slots.clear()


def test_answers_are_those_without_the_cache(model: LookAgain, reference: LookAgain) -> None:
    questions: list[tuple[str, ...]] = [
        ("What is there to see?", "red", "blue"),
        ("What is there to see?", "red", "blue"),
        ("What is there to hear?", "red", "blue"),
        ("What is there to see?", "red", "green"),
        ("What is there to see?", "blue", "red"),
        ("Describe the image in many words.", "red"),
        ("Describe the image in a few words.", "red"),
    ]
    asker = Asker(model)
    cached = []
    for text, *colours in questions:
        result, num_cached = asker.ask(text, *colours)
        cached.append(num_cached)
        images = [Image.new("RGB", (112, 84), colour) for colour in colours]
        expected = reference.generate(images, text, **OPTIONS)
        assert result.tokens == expected.tokens
        assert len(result.reinjections) == 3
        for ours, theirs in zip(result.reinjections, expected.reinjections, strict=True):
            assert ours.selected.tolist() == theirs.selected.tolist()
    asker.close()
    length = len(model.prompt([Image.new("RGB", (112, 84))] * 2, questions[0][0]).input_ids)
    assert cached[0] == 0
    assert cached[1] == length - 1, "all but the token that gives the first logits"
    assert MIN_PREFIX <= cached[2] < length - 1
    assert MIN_PREFIX <= cached[3] < cached[2], "up to the second image, which is another"
    assert cached[4] < cached[3], "not even the first image"
    assert cached[6] > MIN_PREFIX


def test_slots_are_taken_over_when_none_is_left_and_given_back_when_aborted(
    model: LookAgain,
) -> None:
    asker = Asker(model)
    for text in ("One of them?", "Two of them?", "Three of them?", "Two of them?"):
        result, _ = asker.ask(text, "red")
        assert len(result.tokens) == 8
    prompt = model.prompt([], "A question that is dropped before it is answered.")
    request = Request(prompt=prompt, options=make_options(max_tokens=50), first_index=100)
    asker.batch.add(request)
    asker.batch.step()
    assert asker.batch.num_running == 1 and asker.batch.kv_tokens > 0
    asker.batch.cancel(100)
    assert asker.batch.num_running == 0 and asker.batch.kv_tokens == 0
    assert len(asker.ask("One of them?", "red")[0].tokens) == 8
    asker.close()
    slots = [model.engine.alloc(64) for _ in range(model.engine.limits.max_batch)]
    for slot in slots:
        model.engine.free(slot)
