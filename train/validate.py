"""A quick score of an exported checkpoint while training goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from la_trt.engines.torch import TorchEngine
from la_trt.eval.lookworld import EvalConfig, Report, evaluate, questions
from la_trt.lookworld import Sample, WorldConfig
from la_trt.processor.prompt import Processor
from la_trt.reattention.policy import resolve_policy
from la_trt.session import Session


@lru_cache(maxsize=4)
def _samples(split: str, num_per_family: int, world: WorldConfig) -> list[Sample]:
    return questions(EvalConfig(split=split, num_per_family=num_per_family, world=world))


def score_checkpoint(
    directory: Path,
    policy: str,
    *,
    split: str,
    num_per_family: int,
    inject: str | None = None,
    world: WorldConfig | None = None,
) -> Report:
    """The scores of a checkpoint directory with the torch engine, in float32."""
    processor = Processor.from_pretrained(directory)
    engine = TorchEngine.from_pretrained(directory, max_batch=20, max_len=1024)
    session = Session(engine, processor.vocabulary, prefill_chunk=2048)
    config = replace(EvalConfig(), split=split, num_per_family=num_per_family, batch=20)
    chosen = resolve_policy(policy, inject="kv" if inject == "kv" else None)
    samples = _samples(split, num_per_family, world or WorldConfig())
    return evaluate(session, processor, chosen, config, samples=samples)


def quick_scores(
    directory: Path, num: int, policy: str = "copy", world: WorldConfig | None = None
) -> dict[str, Any]:
    """Accuracy in percent by family on about `num` validation questions, and what goes with it."""
    report = score_checkpoint(
        directory, policy, split="validation", num_per_family=max(1, num // 10), world=world
    )
    accuracy = report.scores["accuracy"]
    return {
        "validation": {name: round(100 * value["mean"], 1) for name, value in accuracy.items()},
        "format": round(report.scores["format_frac"], 3),
        "tokens": round(report.scores["tokens_mean"], 1),
    }
