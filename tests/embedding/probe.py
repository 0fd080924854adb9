"""Requests to the C++ probe, and what Python makes of the same."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from la_trt.api import LookAgain
from la_trt.events import Event, ReflectionEvent, ReinjectEvent, Result, TokenEvent
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import Policy, Select, Trigger, preset
from la_trt.sampling import SamplingParams
from tests.cpp import build

Json = dict[str, Any]


def ask_probe(requests: Sequence[Json]) -> list[Any]:
    """The answers of `latrt_probe`, one a request."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    probe = build("latrt_probe") / "latrt_probe"
    done = subprocess.run([probe], input=lines, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(requests), done.stderr[-2000:]
    return answers


def write_rgb(image: Image.Image, path: Path) -> Json:
    """The picture's raw pixels in a file, as a request names them."""
    path.write_bytes(np.asarray(image.convert("RGB")).tobytes())
    return {"rgb": str(path), "width": image.width, "height": image.height}


def read_rgb(entry: Json, root: Path) -> Image.Image:
    """The picture that `write_rgb` wrote; relative paths begin at `root`."""
    size = (entry["width"], entry["height"])
    return Image.frombytes("RGB", size, (root / entry["rgb"]).read_bytes())


def python_options(raw: Json) -> GenerationOptions:
    """The options of a request as the Python session takes them."""
    raw = dict(raw)
    base = preset(raw.pop("policy", "copy"))
    trigger = {"kind": raw.pop("trigger", base.trigger.kind)}
    for key in ("every_tokens", "entropy_nats", "min_gap"):
        trigger[key] = raw.pop(key, getattr(base.trigger, key))
    policy = Policy(
        name=base.name,
        trigger=Trigger(**trigger),
        select=Select(kind=base.select.kind, percent=raw.pop("percent", base.select.percent)),
        inject=raw.pop("inject", base.inject),
        max_reflections=raw.pop("max_reflections", base.max_reflections),
        close_at_once=base.close_at_once,
        allow_reflection=base.allow_reflection,
    )
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
    sampling = SamplingParams(**{n: raw.pop(n) for n in names if n in raw})
    sample = raw.pop("sample", 0)
    for key in ("stop", "forced", "stop_token_ids"):
        raw[key] = tuple(raw.get(key, ()))
    return GenerationOptions(policy=policy, sampling=sampling, num_samples=sample + 1, **raw)


def python_trace(model: LookAgain, request: Json, root: Path = Path()) -> Json:
    """What the probe answers to the request, from the Python session."""
    options = python_options(request["options"])
    images = [read_rgb(entry, root) for entry in request["images"]]
    prompt = model.prompt(images, request["question"], system=request.get("system"))
    wanted = options.num_samples - 1
    events = [e for e in model.session.generate_batch([prompt], options) if e.sequence == wanted]
    result: Result = events[-1].result  # type: ignore[union-attr]
    return {
        "prompt": prompt.input_ids.tolist(),
        "events": [_event(event) for event in events],
        "tokens": [int(t) for t in result.tokens],
        "text": result.text,
        "conclusion": result.conclusion,
        "finish": result.finish_reason,
        "visual_tokens": result.usage.visual_tokens,
        "reinjected_tokens": result.usage.reinjected_tokens,
        "num_reflections": result.num_reflections,
        "masses": result.step_masses.astype(float).tolist(),
    }


def _event(event: Event) -> Json:
    if isinstance(event, TokenEvent):
        return {
            "kind": "token",
            "id": int(event.token_id),
            "text": event.text,
            "logprob": event.logprob,
            "forced": event.forced,
            "step": event.step,
        }
    if isinstance(event, ReflectionEvent):
        return {
            "kind": "reflection",
            "index": event.index,
            "opened": event.opened,
            "step": event.step,
        }
    if isinstance(event, ReinjectEvent):
        return {
            "kind": "reinject",
            "inject": event.kind,
            "select": event.select,
            "selected": event.selected.tolist(),
            "skipped": event.skipped,
            "step": event.step,
        }
    result = event.result
    return {"kind": "done", "finish": result.finish_reason, "step": len(result.tokens)}


def assert_same(got: Any, want: Any, where: str = "") -> None:
    """Equal in everything; floats (log-probabilities, masses) up to rounding."""
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            assert_same(got[key], want[key], f"{where}.{key}")
    elif isinstance(want, list):
        assert len(got) == len(want), f"{where}: {len(got)} and {len(want)} entries"
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(want, float):
        assert abs(got - want) <= 2e-4 + 1e-4 * abs(want), f"{where}: {got} and {want}"
    else:
        assert got == want, f"{where}: {got!r} and {want!r}"
