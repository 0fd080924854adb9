"""A checkpoint's bundles against the torch engine on LookWorld: tokens, masses, scores.

    python -m benchmarks.onnx_parity [CKPT] [--questions 100] [--block-size 32]

float32: the same greedy tokens and masses under every policy and both ways to inject. int8 and
int4: their scores beside float32's. Ends with one JSON line; exit code 6 when a gate fails.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.report import publish
from build_engines import build
from la_trt.api import LookAgain
from la_trt.eval.lookworld import EvalConfig, evaluate, questions
from la_trt.events import Result
from la_trt.lookworld import Sample
from la_trt.options import GenerationOptions
from la_trt.reattention.policy import Policy, preset

CHECKPOINT = Path(__file__).parent.parent / "la_trt" / "assets" / "tiny"
BATCH = 16
MASS_GATE = 1e-5
SCORE_GATE = 0.01


def policies() -> dict[str, Policy]:
    """The compared policies: five presets, those that insert in both ways."""
    made = {name: preset(name) for name in ("never", "text", "vision", "copy", "route")}
    for name in ("vision", "copy", "route"):
        made[f"{name} (kv)"] = replace(made[name], inject="kv")
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """One policy: how many answers have the same tokens, and the largest mass difference."""

    policy: str
    num_questions: int
    num_same: int
    num_tokens: int
    num_reinjections: int
    max_mass_difference: float


def answer_all(
    model: LookAgain, samples: Sequence[Sample], policy: Policy, max_tokens: int
) -> list[Result]:
    """Greedy answers with the masses of every step."""
    options = GenerationOptions(policy=policy, max_tokens=max_tokens, masses=True)
    results: list[Result] = []
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        prompts = [model.processor(s.question.text, [s.image]) for s in part]
        results += model.session.results(prompts, options)
    return results


def compare(name: str, expected: Sequence[Result], got: Sequence[Result]) -> Parity:
    """Tokens exactly; masses up to the first differing token of an answer."""
    pairs = list(zip(expected, got, strict=True))
    differences = [0.0]
    for a, b in pairs:
        same = next(
            (i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y),
            min(len(a.tokens), len(b.tokens)),
        )
        n = min(same, len(a.step_masses), len(b.step_masses))
        if n:
            differences.append(float(np.abs(a.step_masses[:n] - b.step_masses[:n]).max()))
    return Parity(
        policy=name,
        num_questions=len(pairs),
        num_same=sum(a.tokens == b.tokens for a, b in pairs),
        num_tokens=sum(len(a.tokens) for a in expected),
        num_reinjections=sum(not r.skipped for a in expected for r in a.reinjections),
        max_mass_difference=max(differences),
    )


def score(model: LookAgain, samples: Sequence[Sample], config: EvalConfig) -> float:
    """The share of right answers under `copy`."""
    report = evaluate(model.session, model.processor, preset("copy"), config, samples=samples)
    value: float = report.scores["accuracy"]["all"]["mean"]
    return value


def _open_bundle(ckpt: Path, quant: Any, block_size: int, directory: Path) -> LookAgain:
    path = directory / quant
    build(ckpt, path, quant=quant, block_size=block_size)
    return LookAgain.from_bundle(path, backend="onnx", max_batch=BATCH)


@click.command(help=__doc__)
@click.argument("ckpt", type=click.Path(path_type=Path), default=CHECKPOINT)
@click.option("--questions", "num_questions", default=100, show_default=True)
@click.option("--scored", default=300, show_default=True, help="Questions of the quantised scores.")
@click.option("--block-size", default=32, show_default=True)
@click.option("--max-tokens", default=448, show_default=True)
def main(ckpt: Path, num_questions: int, scored: int, block_size: int, max_tokens: int) -> None:
    start = time.perf_counter()
    config = EvalConfig(max_tokens=max_tokens)
    families = len(config.families)
    config = replace(config, num_per_family=-(-max(num_questions, scored) // families))
    samples = questions(config)
    reference = LookAgain.from_checkpoint(ckpt, max_batch=BATCH)
    rows: list[Parity] = []
    scores: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        exact = _open_bundle(ckpt, "none", block_size, Path(directory))
        for name, policy in policies().items():
            part = samples[:num_questions]
            expected = answer_all(reference, part, policy, max_tokens)
            got = answer_all(exact, part, policy, max_tokens)
            rows.append(compare(name, expected, got))
            print(rows[-1], file=sys.stderr)
        scores["none"] = score(exact, samples[:scored], config)
        for quant in ("int8", "int4"):
            model = _open_bundle(ckpt, quant, block_size, Path(directory))
            scores[quant] = score(model, samples[:scored], config)
            print(quant, scores[quant], file=sys.stderr)
    passed = {
        "tokens": all(r.num_same == r.num_questions for r in rows),
        "mass": all(r.max_mass_difference <= MASS_GATE for r in rows),
        "int8": abs(scores["int8"] - scores["none"]) <= SCORE_GATE,
    }
    table = ["| policy | same tokens | tokens | re-injections | mass difference |"]
    table.append("| --- " * 5 + "|")
    for r in rows:
        table.append(
            f"| {r.policy} | {r.num_same} of {r.num_questions} | {r.num_tokens} "
            f"| {r.num_reinjections} | {r.max_mass_difference:.1e} |"
        )
    table += ["", "| weights | score |", "| --- | --- |"]
    table += [f"| {name} | {100 * value:.2f} % |" for name, value in scores.items()]
    result = {
        "benchmark": "onnx_parity",
        "questions": num_questions,
        "scored": min(scored, len(samples)),
        "block_size": block_size,
        "scores": scores,
        "passed": passed,
        "max_mass_difference": max(r.max_mass_difference for r in rows),
        "same_answers": sum(r.num_same for r in rows),
        "answers": sum(r.num_questions for r in rows),
        "seconds": round(time.perf_counter() - start, 1),
    }
    publish("onnx_parity", result, "\n".join(table))
    sys.exit(0 if all(passed.values()) else 6)


if __name__ == "__main__":
    main()
