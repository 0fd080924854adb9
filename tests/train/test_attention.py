"""Attention along answers: what a look holds, means, fits, and a run on a small checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from la_trt.errors import UsageError
from la_trt.events import ReinjectEvent, Result, Timing, Usage
from la_trt.lookworld import WorldConfig, sample
from la_trt.report.decay import predicted_share
from tests.tiny import write_tiny_checkpoint
from train.attention import WINDOW, AttentionConfig, Look, look, main, summarise
from train.command import run

OPEN, CLOSE = 7, 8


def result(tokens: list[int], masses: np.ndarray, events: list[ReinjectEvent]) -> Result:
    return Result(
        text="<CONCLUSION>1 red circle</CONCLUSION>",
        conclusion="1 red circle",
        finish_reason="stop",
        tokens=tokens,
        engine="mock",
        policy="copy",
        reinjections=events,
        usage=Usage(
            prompt_tokens=30, completion_tokens=len(tokens), visual_tokens=20, reinjected_tokens=20
        ),
        timing=Timing(**dict.fromkeys(Timing.__slots__, 0.0)),
        step_masses=masses,
    )


def event(step: int, num: int, skipped: str = "") -> ReinjectEvent:
    return ReinjectEvent(
        sequence=0,
        step=step,
        kind="embed",
        select="all",
        num_tokens=num,
        ms=0.0,
        selected=np.arange(num),
        skipped=skipped,
    )


def test_a_look_holds_what_happened_where() -> None:
    asked = sample("test", 0, WorldConfig(), "describe", want_image=False)
    tokens = [1, OPEN, 2, 3, CLOSE, 4, OPEN, 5, 9]
    masses = np.arange(16, dtype=np.float32).reshape(8, 2) / 100
    events = [event(1, 20), event(6, 20, "no_room")]
    seen = look(asked, result(tokens, masses, events), OPEN, CLOSE)
    assert seen.share == pytest.approx(masses.sum(axis=1))
    assert (seen.opened, seen.closed) == ((1, 6), (4, 8))
    assert seen.injected.tolist() == [0, 20, 20, 20, 20, 20, 20, 20]
    assert (seen.num_visual, seen.num_prompt, seen.mentioned) == (20, 10, 1)
    assert seen.hallucinated in (0, 1) and seen.family == "describe"
    none = look(asked, result([1, 2], masses[:2], []), None, None)
    assert none.opened == () and none.injected.tolist() == [0, 0]


def made(share: np.ndarray, opened: tuple[int, ...] = (), closed: tuple[int, ...] = ()) -> Look:
    return Look(
        share=share,
        injected=np.zeros(len(share)),
        opened=opened,
        closed=closed,
        num_visual=64,
        num_prompt=30,
        mentioned=2,
        hallucinated=1,
        correct=True,
        family="describe",
    )


def test_means_and_fits() -> None:
    theory = predicted_share(64, 30, np.arange(120))
    found = summarise([made(theory[:n]) for n in (40, 100, 120)], 2)
    assert found["theory_r2"] == pytest.approx(1.0, abs=1e-6)
    assert found["laws"]["two_parameters"]["hyperbolic"]["length"] == pytest.approx(94, rel=1e-3)
    assert len(found["curve"]["at"]) == 100 and found["curve"]["count"][0] == 3
    assert found["after_reflection"] is None and found["inside_reflection"] is None
    assert found["described"] == [[40, 2, 1], [100, 2, 1], [120, 2, 1]]
    json.dumps(found, allow_nan=False)


def test_before_after_and_inside_a_reflection() -> None:
    share = np.full(100, 0.1)
    share[50:60], share[60:80] = 0.5, 0.3
    found = summarise([made(share, (50,), (60,)), made(share)], 1)
    assert found["before_reflection"] == pytest.approx(0.1)
    assert found["inside_reflection"] == pytest.approx(0.5)
    after = (10 * 0.5 + (WINDOW - 10) * 0.3) / WINDOW
    assert found["after_reflection"] == pytest.approx(after)
    assert found["reflections_mean"] == 0.5
    early = summarise([made(share, (1,), (3,))] * 3, 2)
    assert early["laws"] is None and early["laws_whole"] is not None


def test_command(tmp_path: Path) -> None:
    ckpt = write_tiny_checkpoint(tmp_path / "ckpt", always=("<REFLECTION>",))
    output = tmp_path / "attention.json"
    arguments = ["--ckpt", str(ckpt), "--output", str(output), "--num-per-family", "1"]
    size = '{"sizes": [[112, 112]]}'
    assert run(main, [*arguments, "--max-tokens", "9", "--min-answers", "3", "--world", size]) == 0
    found = json.loads(output.read_text())
    assert found["config"]["policy"] == "copy" and found["visual_tokens"] == 16
    assert found["reflections_mean"] == 8  # the ninth token has no forward pass
    assert found["curve"]["injected"] == [16.0 * k for k in range(1, 9)]
    assert found["lengths"] == [8] * 10
    assert run(main, arguments[2:]) == 2
    assert run(main, [*arguments, "--world", "{clutter"]) == 2
    with pytest.raises(UsageError, match="inject"):
        AttentionConfig(inject="paste")
