"""What the finished stages found, as plain values: the rows of every table and plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from la_trt.lookworld import FAMILIES
from train.experiments.plan import (
    ATTENTION,
    DIALLED,
    INVERTED,
    MAIN,
    SPLITS,
    VARIANTS,
    PlanConfig,
    asked_seed,
    attention_name,
    dial_points,
    eval_name,
    looking_name,
    planting_name,
)
from train.experiments.runner import Runner
from train.experiments.statistics import Counts, counts_of, difference, estimate, ratio
from train.planting import PLANTS

METRICS = ("accuracy", "CHAIRi", "CHAIRs", "recall")
BASELINE = "text-only"
_LOOKING_SUMS: tuple[str, ...] = ("answers", "captions_right", "correct_beside_right_caption")
_LOOKING_SUMS += ("correct_beside_wrong_caption", "named", "repeated", "misread", "mended")
_LOOKING_SUMS += ("spoiled", "misnamed", "by_prior")
Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One of the targets on test-inverted: what was wanted, what was found, whether it is met.

    `met` is None where what it needs has not been run.
    """

    wanted: str
    found: str
    met: bool | None


def collect(runner: Runner, config: PlanConfig) -> dict[str, Any]:
    """All results of the finished stages, plain JSON values; what is missing is left out, and
    every row names the seeds that it is a mean over."""
    found = Evals(runner, config)
    attention = {name: _attention(runner, config, name) for name in ATTENTION}
    values: dict[str, Any] = {
        "seeds": list(config.seeds),
        "world": dict(config.world),
        "num_per_family": config.scaled(config.num_per_family),
        "variants": {v.name: found.rows(v.name) for v in VARIANTS},
        "differences": {v.name: found.against(v.name) for v in VARIANTS if v.name != BASELINE},
        "dials": {point.label: found.dial(point.label) for point in dial_points(config)},
        "looking": _lookings(runner, config),
        "planting": _plantings(runner, config),
        "attention": {name: of for name, of in attention.items() if of is not None},
        "brpo": [m for seed in config.seeds if (m := _brpo(runner, seed)) is not None],
        "answers": [a for s in config.seeds for a in _answers(runner, s)],
        "stale": runner.stale,
        "missing": [s.name for s in runner.remaining() if runner.result(s) is None],
    }
    values["targets"] = [
        {"wanted": t.wanted, "found": t.found, "met": t.met}
        for t in targets(found, values["attention"])
    ]
    return values


class Evals:
    """The reports of finished evaluations: of a variant, those of the seeds that are there."""

    def __init__(self, runner: Runner, config: PlanConfig) -> None:
        self._config = config
        self._runner = runner

    def reports(self, variant: str, split: str, dial: str = "") -> dict[int, Report]:
        """One report a seed, of the seeds for which there is one."""
        asked = next(v for v in VARIANTS if v.name == variant)
        own = {seed: asked_seed(self._config, asked, seed) for seed in self._config.seeds}
        names = {seed: eval_name(variant, of, split, dial) for seed, of in own.items()}
        return _by_seed(self._runner, names)

    def rows(self, variant: str) -> dict[str, Any]:
        """By split: every metric with its interval, POPE F1, cost, and the seeds they are of;
        splits that are there."""
        rows = {}
        for split in SPLITS:
            by_seed = self.reports(variant, split)
            reports = list(by_seed.values())
            if not reports:
                continue
            rows[split] = {
                "seeds": list(by_seed),
                **{m: estimate(counts_of(reports, m)).to_json() for m in METRICS},
                "families": {
                    f: estimate(counts_of(reports, f"accuracy {f}")).to_json() for f in FAMILIES
                },
                "POPE F1": _mean([r["scores"]["POPE F1, mean"]["value"] for r in reports]),
                **{
                    name: _mean([r["answers"][name] for r in reports])
                    for name in (
                        *("format_frac", "truncated_frac", "tokens_mean", "reflections_mean"),
                        *("reinjected_tokens_mean", "seconds_mean"),
                    )
                },
            }
        return rows

    def against(self, variant: str, baseline: str = BASELINE) -> dict[str, Any]:
        """By split: what the variant has more than the baseline, paired."""
        rows = {}
        for split in SPLITS:
            pairs = {m: self.pair(m, baseline, variant, split) for m in ("accuracy", "CHAIRi")}
            if all(pair is not None for pair in pairs.values()):
                rows[split] = {
                    "seeds": self.shared(baseline, variant, split),
                    **{m: difference(*pair).to_json() for m, pair in pairs.items() if pair},
                }
        return rows

    def dial(self, label: str) -> dict[str, Any]:
        """COPY and text-only at one point of a dial, and their difference."""
        pair = self.pair("accuracy", BASELINE, "COPY", INVERTED, label)
        hallucinated = self.pair("CHAIRi", BASELINE, "COPY", INVERTED, label)
        if pair is None or hallucinated is None:
            return {}
        found = dict(zip(DIALLED, map(estimate, pair), strict=True))
        return {
            "seeds": self.shared(BASELINE, "COPY", INVERTED, label),
            **{name: of.to_json() for name, of in found.items()},
            "difference": difference(*pair).to_json(),
            "CHAIRi difference": difference(*hallucinated).to_json(),
        }

    def shared(self, a: str, b: str, split: str, dial: str = "") -> list[int]:
        """The seeds that both variants have been evaluated for."""
        there = self.reports(b, split, dial)
        return [seed for seed in self.reports(a, split, dial) if seed in there]

    def lacking(self, a: str, b: str) -> str:
        """Words on seeds that two variants do not both have on test-inverted; none if all."""
        seeds, of = self.shared(a, b, INVERTED), len(self._config.seeds)
        return f", {len(seeds)} of {of} seeds" if len(seeds) < of else ""

    def pair(
        self, metric: str, a: str, b: str, split: str, dial: str = ""
    ) -> tuple[Counts, Counts] | None:
        """What a metric of two variants is made of, over the seeds that both have; None without
        one."""
        seeds = self.shared(a, b, split, dial)
        if not seeds:
            return None
        of_a, of_b = self.reports(a, split, dial), self.reports(b, split, dial)
        return (
            counts_of([of_a[seed] for seed in seeds], metric),
            counts_of([of_b[seed] for seed in seeds], metric),
        )


def targets(found: Evals, attention: Mapping[str, Any]) -> list[Target]:
    """The targets on test-inverted, each judged by the mean over the seeds that are there."""
    judged = []
    for wanted, names, least in (
        ("COPY at least 3 points of accuracy above text-only", (BASELINE, "COPY"), 0.03),
        ("ROUTE 50 above text-only", (BASELINE, "ROUTE 50"), 1e-12),
        ("ROUTE 50 below COPY", ("ROUTE 50", "COPY"), 1e-12),
        ("ROUTE 50 above random 50", ("random 50", "ROUTE 50"), 1e-12),
    ):
        both = found.pair("accuracy", *names, INVERTED)
        if both is None:
            judged.append(Target(wanted=wanted, found="not run", met=None))
            continue
        gap = difference(*both)
        said = f"{100 * gap.value:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
        said += found.lacking(*names)
        judged.append(Target(wanted=wanted, found=said, met=gap.value >= least))
    both = found.pair("CHAIRi", BASELINE, "COPY", INVERTED)
    part = None if both is None else ratio(*both)
    said = "not run" if both is None else "text-only hallucinates nothing"
    if part is not None:
        said = f"{part.value:.2f} x ({part.low:.2f} to {part.high:.2f})"
        said += found.lacking(BASELINE, "COPY")
    judged.append(
        Target(
            wanted="CHAIRi of COPY at most 0.6 x that of text-only",
            found=said,
            met=None if part is None else part.value <= 0.6,
        )
    )
    return [*judged, _attention_target(attention)]


def _attention_target(attention: Mapping[str, Any]) -> Target:
    wanted = "attention on visual tokens inside reflections of COPY at least 2 x that of text-only"
    inside = [attention.get(name, {}).get("inside_reflection") for name in DIALLED]
    if any(value is None for value in inside):
        return Target(wanted=wanted, found="not run, or nobody reflects", met=None)
    if len({tuple(attention[name]["seeds"]) for name in DIALLED}) > 1:
        return Target(wanted=wanted, found="not run for the same seeds yet", met=None)
    times = inside[1] / inside[0]
    said = f"{times:.2f} x ({inside[1]:.3f} for {inside[0]:.3f}, no interval)"
    return Target(wanted=wanted, found=said, met=times >= 2)


def _by_seed(runner: Runner, names: Mapping[int, str]) -> dict[int, Any]:
    """What stages found, by seed, of those that are there. `names`: of the stages, by seed."""
    by_name = {stage.name: stage for stage in runner.stages}
    there = {}
    for seed, name in names.items():
        stage = by_name.get(name)
        made = None if stage is None else runner.result(stage)
        if stage is not None and made is not None:
            there[seed] = json.loads((made.directory / stage.result).read_bytes())
    return there


def _lookings(runner: Runner, config: PlanConfig) -> dict[str, Any]:
    """What reflections name against caption and image, by variant, then by point of a dial."""
    wanted = [(name, name, "") for name in MAIN]
    wanted += [
        (f"{name}, {point.label}", name, point.label)
        for point in dial_points(config)
        for name in DIALLED
    ]
    found = {label: _looking(runner, config, name, dial) for label, name, dial in wanted}
    return {label: of for label, of in found.items() if of is not None}


def _looking(runner: Runner, config: PlanConfig, variant: str, dial: str) -> dict[str, Any] | None:
    """Shares over the answers of the seeds that are there; None without one."""
    there = _by_seed(runner, {seed: looking_name(variant, seed, dial) for seed in config.seeds})
    if not there:
        return None
    of = {key: sum(f[key] for f in there.values()) for key in _LOOKING_SUMS}
    wrong = of["answers"] - of["captions_right"]
    return {
        "seeds": list(there),
        "captions_right": _share(of["captions_right"], of["answers"]),
        "accuracy_beside_right_caption": _share(
            of["correct_beside_right_caption"], of["captions_right"]
        ),
        "accuracy_beside_wrong_caption": _share(of["correct_beside_wrong_caption"], wrong),
        "repeated": _share(of["repeated"], of["named"]),
        "mended": _share(of["mended"], of["misread"]),
        "spoiled": _share(of["spoiled"], of["named"] - of["misread"]),
        "by_prior": _share(of["by_prior"], of["misnamed"]),
        "num_misnamed": of["misnamed"],
        "num_named": of["named"],
        "num_misread": of["misread"],
    }


def _plantings(runner: Runner, config: PlanConfig) -> dict[str, Any]:
    """What became of planted errors, by variant, then by mix; shares over the seeds there are."""
    wanted = [(name, name, "", 1) for name in MAIN]
    wanted += [
        (f"{name}, {mix}" + (f", reasoning {n} times" if n > 1 else ""), name, mix, n)
        for mix in config.mixes
        for n in config.planting_repeats
        for name in DIALLED
    ]
    found = {}
    for label, variant, dial, repeats in wanted:
        names = {seed: planting_name(variant, seed, dial, repeats) for seed in config.seeds}
        there = _by_seed(runner, names)
        if there:
            lies, truths = ([f[plant] for f in there.values()] for plant in PLANTS)
            found[label] = {
                "seeds": list(there),
                "planted": _planted(lies),
                "as it is": _planted(truths),
            }
    return found


def _planted(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    of = {key: sum(f[key] for f in files) for key in _LOOKING_SUMS}
    right = of["correct_beside_right_caption"] + of["correct_beside_wrong_caption"]
    return {
        "accuracy": _share(right, of["answers"]),
        "mended": _share(of["mended"], of["misread"]),
        "spoiled": _share(of["spoiled"], of["named"] - of["misread"]),
        "num_answers": of["answers"],
        "num_misread": of["misread"],
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _attention(runner: Runner, config: PlanConfig, variant: str) -> dict[str, Any] | None:
    """Means of one variant's attention over the seeds that are there, with its curves; None
    without one."""
    there = _by_seed(runner, {seed: attention_name(variant, seed) for seed in config.seeds})
    if not there:
        return None
    files = list(there.values())
    names = ("theory_r2", "before_reflection", "after_reflection", "inside_reflection")
    means = {}
    for name in names:
        known = [f[name] for f in files if f[name] is not None]
        means[name] = _mean(known) if known else None
    described = [row for f in files for row in f["described"]]
    return {
        "seeds": list(there),
        **means,
        "laws": _mean_laws([f["laws"] for f in files]),
        "laws_whole": _mean_laws([f["laws_whole"] for f in files]),
        "curves": [f["curve"] for f in files],
        "described": described,
    }


def _mean_laws(files: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """R^2 and length of each law, means over the seeds that could be fitted."""
    found: dict[str, Any] = {}
    fitted = [f for f in files if f is not None]
    for form in ("two_parameters", "with_floor") if fitted else ():
        for law in ("exponential", "hyperbolic"):
            lengths = [f[form][law]["length"] for f in fitted]
            found[f"{law}, {form.replace('_', ' ')}"] = {
                "r2": _mean([f[form][law]["r2"] for f in fitted]),
                "length": None if None in lengths else _mean(lengths),
            }
    return found


def _brpo(runner: Runner, seed: int) -> dict[str, Any] | None:
    """The metrics of a BRPO run by step, for the paper's Figures 6 and 7."""
    stage = next((s for s in runner.stages if s.name == f"brpo-{seed}"), None)
    made = None if stage is None else runner.result(stage)
    if made is None:
        return None
    steps: dict[str, list[Any]] = {"step": [], "reflections": [], "reflection_tokens": []}
    steps |= {"reward": [], "reward_accuracy": [], "response_tokens": []}
    tested: dict[str, list[float]] = {"step": [], "accuracy": []}
    for line in _lines(made.directory / "brpo.jsonl"):
        if "validation" in line:
            tested["step"].append(line["step"])
            tested["accuracy"].append(line["validation"]["all"])
        elif all(name in line for name in steps):
            for name, values in steps.items():
                values.append(line[name])
    return {"seed": seed, "steps": steps, "validation": tested}


def _answers(runner: Runner, seed: int) -> list[dict[str, Any]]:
    """What distillation kept, by the model that answered."""
    found = []
    for of in ("zero", "cold"):
        stage = next((s for s in runner.stages if s.name == f"answers-{of}-{seed}"), None)
        made = None if stage is None else runner.result(stage)
        if stage is None or made is None:
            continue
        summary = json.loads((made.directory / stage.result).read_bytes())
        names = ("asked", "kept", "corrected", "dropped", "kept_frac", "reflections_mean")
        found.append({"seed": seed, "of": of, **{name: summary[name] for name in names}})
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
