"""How much a model attends to the image while it answers, token by token.

`python -m train.attention --ckpt DIR --policy copy --output FILE.json`: LookWorld questions,
greedy; the visual share of every generated token, its mean curve with fitted laws (the paper's
Figures 2 and 9, Theorem 3.1), the attention inside reflections, and hallucination by length
(Figure 1).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from la_trt.api import LookAgain, make_options
from la_trt.errors import UsageError
from la_trt.eval.lookworld import EvalConfig, questions
from la_trt.events import InjectKind, Result
from la_trt.files.atomic import atomic_file
from la_trt.lookworld import Sample, chair, is_correct
from la_trt.report.decay import explained, fit_laws, mean_curve, predicted_share, visual_share
from train.answering import Split, model_options, open_model, policy_flags
from train.command import run
from train.options import config_options
from train.progress import RunLog
from train.rows import world_of_text

WINDOW = 20  # generated tokens right after a reflection has opened


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """What is asked. `world`: JSON of what differs from the default WorldConfig. A point of the
    mean curve needs `min_answers`. `inject`: embed or kv."""

    split: Split = "test-inverted"
    num_per_family: int = 10
    policy: str = "copy"
    inject: InjectKind = "embed"
    route_percent: float = 50.0
    max_tokens: int = 700
    batch: int = 8
    min_answers: int = 10
    world: str = "{}"

    def __post_init__(self) -> None:
        policy_flags(self.policy, self.inject, self.route_percent)
        if self.min_answers < 1 or self.batch < 1 or self.num_per_family < 1:
            raise UsageError("min_answers, batch, num_per_family: expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One answer: the visual share (N,) of its tokens, and what it was like.

    `opened`, `closed`: the tokens at which reflections open and close, ends of the answer where
    one does not close. `injected` (N,): visual tokens put in again up to each token.
    """

    share: np.ndarray
    injected: np.ndarray
    opened: tuple[int, ...]
    closed: tuple[int, ...]
    num_visual: int
    num_prompt: int
    mentioned: int
    hallucinated: int
    correct: bool
    family: str


def look(asked: Sample, result: Result, open_id: int | None, close_id: int | None) -> Look:
    """What an answer generated with masses on shows."""
    share = visual_share(result.step_masses)
    tokens = result.tokens[: len(share)]
    opened = tuple(k for k, token in enumerate(tokens) if token == open_id)
    ends = [k for k, token in enumerate(tokens) if token == close_id]
    closed = tuple(next((e for e in ends if e > k), len(tokens)) for k in opened)
    injected = np.zeros(len(share))
    for event in result.reinjections:
        if not event.skipped:
            injected[event.step :] += event.num_tokens
    mentioned = hallucinated = 0
    if asked.question.family == "describe":
        mentioned, hallucinated, _ = chair(result.conclusion, asked.scene)
    usage = result.usage
    return Look(
        share=share,
        injected=injected,
        opened=opened,
        closed=closed,
        num_visual=usage.visual_tokens,
        num_prompt=usage.prompt_tokens - usage.visual_tokens,
        mentioned=mentioned,
        hallucinated=hallucinated,
        correct=is_correct(asked.question, result.conclusion, asked.scene),
        family=asked.question.family,
    )


def summarise(looks: Sequence[Look], min_answers: int) -> dict[str, Any]:
    """Plain JSON values: the mean curve, its fits, the share before and inside reflections.

    The laws are fitted to the tokens before the first reflection, since an injection is a jump
    that neither form has; `laws_whole` are fitted to all of them. The prediction of the theorems
    has no parameter, copies included: its R^2 may be negative.
    """
    whole = mean_curve([one.share for one in looks], min_answers)
    injected = mean_curve([one.injected for one in looks], min_answers).mean
    visual = float(np.mean([one.num_visual for one in looks]))
    prompt = float(np.mean([one.num_prompt for one in looks]))
    theory = predicted_share(visual, prompt, whole.at, injected)
    head = [one.share[: one.opened[0]] if one.opened else one.share for one in looks]
    return {
        "curve": {
            "at": whole.at.tolist(),
            "share": _rounded(whole.mean),
            "error": _rounded(whole.error),
            "count": whole.count.tolist(),
            "injected": _rounded(injected),
            "theory": _rounded(theory),
        },
        "visual_tokens": visual,
        "prompt_tokens": prompt,
        "theory_r2": explained(whole.mean, theory, whole.count),
        "laws": _laws(head, min_answers),
        "laws_whole": _laws([one.share for one in looks], min_answers),
        "before_reflection": _mean([one.share[max(a - WINDOW, 0) : a] for one, a in _opens(looks)]),
        "after_reflection": _mean([one.share[a : a + WINDOW] for one, a in _opens(looks)]),
        "inside_reflection": _mean(
            [one.share[a:b] for one in looks for a, b in zip(one.opened, one.closed, strict=True)]
        ),
        "reflections_mean": float(np.mean([len(one.opened) for one in looks])),
        "lengths": [len(one.share) for one in looks],
        "correct": [one.correct for one in looks],
        "described": [
            [len(one.share), one.mentioned, one.hallucinated]
            for one in looks
            if one.family == "describe"
        ],
    }


def _opens(looks: Sequence[Look]) -> list[tuple[Look, int]]:
    return [(one, at) for one in looks for at in one.opened]


def _laws(curves: Sequence[np.ndarray], min_answers: int) -> dict[str, Any] | None:
    """Both laws, with and without a floor; None where there are too few tokens to fit."""
    if sum(len(curve) >= 4 for curve in curves) < min_answers:
        return None
    mean = mean_curve(curves, min_answers)
    return {
        name: {
            law: fit.to_json()
            for law, fit in fit_laws(mean.at, mean.mean, weights=mean.count, floor=floor).items()
        }
        for name, floor in (("two_parameters", False), ("with_floor", True))
    }


def _mean(parts: Sequence[np.ndarray]) -> float | None:
    """The mean over all tokens, None where there are none."""
    joined = np.concatenate([np.zeros(0), *parts])
    return float(joined.mean()) if len(joined) else None


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), 6) for v in values]


def measure(
    model: LookAgain,
    config: AttentionConfig,
    progress: Callable[[int, str], None] | None = None,
) -> list[Look]:
    """The looks of all questions of the config, in order."""
    world = world_of_text(config.world)
    samples = questions(
        EvalConfig(split=config.split, num_per_family=config.num_per_family, world=world)
    )
    flags = policy_flags(config.policy, config.inject, config.route_percent)
    options = make_options(**flags, max_tokens=config.max_tokens, masses=True)
    tags, looks = model.session.tags, list[Look]()
    for start in range(0, len(samples), config.batch):
        part = samples[start : start + config.batch]
        prompts = [model.processor(s.question.text, [s.image]) for s in part if s.image is not None]
        for asked, result in zip(part, model.session.results(prompts, options), strict=True):
            looks.append(look(asked, result, tags.reflection_open, tags.reflection_close))
        if progress is not None:
            progress(len(looks), f"visual share {np.mean([o.share.mean() for o in looks]):.3f}")
    return looks


@click.command()
@config_options(AttentionConfig)
@model_options
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON to write")
def main(
    ckpt: Path | None, engine: Path | None, threads: int | None, output: Path, **values: Any
) -> None:
    """Measure the attention to the image along the answers to LookWorld questions."""
    config = AttentionConfig(**values)
    model = open_model(ckpt, engine, threads, config.batch)
    with RunLog(output.parent, output.stem + ".metrics", total=10 * config.num_per_family) as log:
        looks = measure(model, config, log.advance)
    found = {"config": asdict(config), **summarise(looks, config.min_answers)}
    with atomic_file(output) as file:
        file.write(json.dumps(found).encode() + b"\n")
    shown = ("theory_r2", "before_reflection", "after_reflection", "inside_reflection")
    click.echo(json.dumps({name: found[name] for name in shown}))


if __name__ == "__main__":
    sys.exit(run(main, goes_on=""))
