"""Engines put to the proof: each builds or loads the shipped model and answers a question."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from la_trt.cli.checks import Check
from la_trt.cli.source import shipped
from la_trt.cli.terminal import progress_bar
from la_trt.errors import LookAgainError

if TYPE_CHECKING:
    from la_trt.api import LookAgain

TRIAL_TOKENS = 8
Answer = list[int]


def engine_checks() -> list[Check]:
    """Every engine of the project: run, not installed, or not there yet."""
    checks = [_providers()]
    onnx, expected = _run("engine onnx", _open_onnx)
    checks.append(onnx)
    checks.append(_torch(expected))
    checks.append(_native(expected))
    checks.append(_tensorrt())
    return checks


def _tensorrt() -> Check:
    """What its engines need; building one to run it would take minutes."""
    from la_trt.engines.cuda import open_device
    from la_trt.engines.tensorrt_library import load_tensorrt, plugin_library

    name = "engine tensorrt"
    try:
        trt, library = load_tensorrt(), plugin_library()
        with open_device() as device:
            found = f"{trt.name} {trt.version}, plugins {library.sha256[:12]}, SM {device.sm}"
    except LookAgainError as error:
        return Check(name=name, status="absent", detail=_one_line(error))
    return Check(name=name, status="ok", detail=f"{found}; not tried here")


def _providers() -> Check:
    try:
        from la_trt.engines.ort import ort
    except ImportError as error:
        return Check(name="onnx providers", status="failed", detail=_one_line(error))
    names = ort.get_available_providers()
    return Check(
        name="onnx providers",
        status="ok" if "CPUExecutionProvider" in names else "failed",
        detail=", ".join(names),
    )


def _torch(expected: Answer | None) -> Check:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return Check(
            name="engine torch",
            status="absent",
            detail="torch is not installed; only training and checkpoints as they are need it",
        )
    check, tokens = _run("engine torch", lambda work: _open_torch())
    return _compared(check, tokens, expected)


def _native(expected: Answer | None) -> Check:
    from importlib.util import find_spec

    if find_spec("la_trt._native") is None:
        return Check(
            name="engine native",
            status="absent",
            detail="not built: install la-trt where a C++ compiler is; onnx runs without it",
        )
    check, tokens = _run("engine native", _open_native)
    return _compared(check, tokens, expected)


def _compared(check: Check, tokens: Answer | None, expected: Answer | None) -> Check:
    """The check, failed if the tokens are others than those of onnx."""
    if check.status != "ok" or expected is None or tokens == expected:
        return check
    return Check(
        name=check.name,
        status="failed",
        detail=f"other tokens than onnx: {tokens}, onnx has {expected}",
    )


def _run(name: str, open_model: Callable[[Path], LookAgain]) -> tuple[Check, Answer | None]:
    """The check of one engine, and the tokens of its answer."""
    with tempfile.TemporaryDirectory(prefix="la-trt-doctor-") as work:
        try:
            started = time.perf_counter()
            model = open_model(Path(work))
            loaded = time.perf_counter()
            result = _ask(model)
            ran = time.perf_counter()
        except LookAgainError as error:
            return Check(name=name, status="failed", detail=_one_line(error)), None
        except (ImportError, RuntimeError, OSError, MemoryError) as error:
            detail = f"{type(error).__name__}: {_one_line(error)}"
            return Check(name=name, status="failed", detail=detail), None
    limits = model.engine.limits
    level = f" ({limits.details['isa']})" if "isa" in limits.details else ""
    detail = (
        f"ran on {limits.device}{level} in {limits.dtype}: ready in {loaded - started:.1f} s, "
        f"{len(result)} tokens in {ran - loaded:.2f} s"
    )
    return Check(name=name, status="ok", detail=detail), result


def _open_onnx(work: Path) -> LookAgain:
    from build_engines.build import build
    from la_trt.api import LookAgain

    with progress_bar("building the shipped model") as progress:
        build(shipped(), work / "bundle", progress=progress)
    return LookAgain.from_bundle(work / "bundle", backend="onnx", max_batch=1)


def _open_native(work: Path) -> LookAgain:
    from build_engines.build import build
    from la_trt.api import LookAgain

    build(shipped(), work / "bundle")
    return LookAgain.from_bundle(work / "bundle", backend="native", max_batch=1)


def _open_torch() -> LookAgain:
    from la_trt.api import LookAgain

    return LookAgain.from_checkpoint(shipped(), max_batch=1)


def _ask(model: LookAgain) -> Answer:
    """The greedy answer's first tokens, after a forced `<REFLECTION>`, so that COPY acts."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (112, 112), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 70, 70), fill="red")
    tag = model.session.tags.reflection_open
    result = model.generate(
        [image],
        "How many red circles are there?",
        policy="copy",
        forced=() if tag is None else (tag,),
        max_tokens=TRIAL_TOKENS,
        ignore_eos=True,
    )
    if tag is not None and not any(not r.skipped for r in result.reinjections):
        raise RuntimeError("no visual tokens were put in at the reflection")
    if result.finish_reason == "numerical_error":
        raise RuntimeError("the numbers were not finite")
    return result.tokens


def _one_line(error: BaseException) -> str:
    """Of a message of ours, what to do stands in the second line."""
    between = "; " if isinstance(error, LookAgainError) else " "
    return between.join(filter(None, map(str.strip, str(error).splitlines())))[:240]
