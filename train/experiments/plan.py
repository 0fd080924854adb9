"""What is trained and measured: variants, seeds, dials, as a table of stages (paper, section 6).

All variants of a seed start from one cold-start checkpoint and learn from the same answers for as
many steps. Policies that differ only while answering share their training: `vision` is the COPY
model, `random` and the other percents are the ROUTE model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from la_trt.errors import UsageError
from train.experiments.stages import Stage, in_order

# Inputs. The second was the shipped checkpoint once, and the keys of kept results have its name.
START, COPIES = "start", "shipped"
INVERTED = "test-inverted"
SPLITS = ("test", INVERTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A row of the tables: which SFT run answers, and with which policy.

    `sft`: a key of SFTS, or None for the checkpoint of the input `start` itself.
    """

    name: str
    sft: str | None
    policy: str
    start: str = START
    inject: str | None = None
    percent: float | None = None


# SFT run -> (what is put in at training, injection, answers of which model it learns from).
SFTS: Mapping[str, tuple[str, str, str]] = {
    "text": ("none", "embed", "zero"),
    "copy": ("copy", "embed", "zero"),
    "route": ("route", "embed", "zero"),
    "kv": ("copy", "kv", "zero"),
    "nobrpo": ("copy", "embed", "cold"),
}
VARIANTS = (
    Variant(name="base", sft=None, policy="text"),
    Variant(name="no reflection", sft="text", policy="never"),
    Variant(name="text-only", sft="text", policy="text"),
    Variant(name="vision-only", sft="copy", policy="vision"),
    Variant(name="COPY without BRPO", sft="nobrpo", policy="copy"),
    Variant(name="COPY", sft="copy", policy="copy"),
    Variant(name="COPY kv", sft="kv", policy="copy", inject="kv"),
    Variant(name="ROUTE 0", sft="route", policy="route", percent=0),
    Variant(name="ROUTE 25", sft="route", policy="route", percent=25),
    Variant(name="ROUTE 50", sft="route", policy="route", percent=50),
    Variant(name="ROUTE 75", sft="route", policy="route", percent=75),
    Variant(name="ROUTE 100", sft="route", policy="route", percent=100),
    Variant(name="random 50", sft="route", policy="random", percent=50),
    # Trained with copies from its first step: as many steps as the cold start had without.
    Variant(name="COPY from nothing", sft=None, start=COPIES, policy="copy"),
)
# The comparison that the rest is beside: evaluated first, for every seed, before anything else.
MAIN = ("text-only", "COPY", "ROUTE 50", "random 50")
ATTENTION = MAIN
DIALLED = ("text-only", "COPY")
BASE_POINT = "main"
# Nearest to the paper: answers far from the image (reasonings that go through every object and
# then through those that matter, as the cold start was trained), and a strong prior of language
# against it: nine objects of ten have their shape's usual colour in every answer that is learned
# from, and on test-inverted nine of ten avoid it.
WORLD: dict[str, Any] = {"prior_strength": 0.9, "reasoning_length": 3}
# Half of the responses name a wrong thing in their caption, and only the image can tell the
# reflection so; by default one in twenty does, and text alone mends the other errors.
MIXES = {"captions-err": {"error_rate": 0.5, "caption_error_frac": 1.0}}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """Seeds and budgets, the same for every variant.

    `world`: of the main comparison, what differs from the default; also of BRPO's questions and
    of the answers to learn from. `dials`: other values of one field of it each; for each, and for
    `world` itself, text-only and COPY are trained on LookWorld's own responses. `mixes`: by name,
    fields of the world that change these responses and no question; `planting_repeats`: how often
    the reasoning before a planted error's reflection is said, for these. `sizes`: names of further
    cold-start checkpoints, of other sizes, given as inputs `start-NAME`. `scale` multiplies every
    budget, for a trial.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    brpo_steps: int = 50
    num_answers: int = 1500
    sft_steps: int = 300
    dial_steps: int = 150
    num_per_family: int = 100
    attention_per_family: int = 10
    planting_per_family: int = 30
    planting_repeats: tuple[int, ...] = (1, 4)
    world: Mapping[str, Any] = field(default_factory=lambda: dict(WORLD))
    dials: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: {
            "reasoning_length": (1,),
            "prior_strength": (0.0,),
            "clutter": (1.0,),
        }
    )
    mixes: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: dict(MIXES))
    sizes: tuple[str, ...] = ()
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UsageError(f"seeds: expected different numbers, got {self.seeds}")
        if not self.scale > 0:
            raise UsageError(f"scale: expected a number above 0, got {self.scale}")

    def scaled(self, number: int) -> int:
        """A budget times the scale, at least 1."""
        return max(1, round(number * self.scale))


# Processor seconds on one core of a shared 2-core machine, from short trials with the shipped
# checkpoint (docs/experiments.md); the runner replaces them by what stages of the kind took.
_START_S = 10.0  # imports, the checkpoint, drawing the first samples
_BRPO_STEP_S, _VALIDATION_S = 20.0, 9.0
_ANSWER_S = 0.07
_BUNDLE_S = 3.0
_SFT_STEP_S = {
    ("none", "embed"): 3.2,
    ("copy", "embed"): 3.8,
    ("route", "embed"): 4.3,
    ("copy", "kv"): 3.2,
}
_NUM_VALIDATIONS = 6
_BATCH = 32  # answers decoded at a time
_MAX_TOKENS = 448  # of an answer; those of the cold start stay below 320


def make_plan(config: PlanConfig) -> list[Stage]:
    """All stages, those that others need first, in the order in which a cut-off run is worth most:
    the main comparison on test-inverted seed by seed, then the mixes, then attention, all other
    variants and the test split seed by seed, then the dials. Only BRPO, which everything of its
    seed waits for, starts two seeds ahead, so that no core is idle."""
    training = {s.name: s for seed in config.seeds for s in _training(config, seed)}
    for stage in (_bundle(f"{{@{START}}}"), _bundle(f"{{@{COPIES}}}")):
        training[stage.name] = stage
    brpo = [training.pop(f"brpo-{seed}") for seed in config.seeds]
    points = dial_points(config)
    first, mixes, rest, last = brpo[:2], list[Stage](), list[Stage](), list[Stage]()
    for k, seed in enumerate(config.seeds):
        first += [training.pop(f"answers-zero-{seed}"), *brpo[k + 2 : k + 3]]
        asked = [v for v in VARIANTS if seed == asked_seed(config, v, seed)]
        main = [v for v in asked if v.name in MAIN]
        others = [v for v in asked if v.name not in MAIN]
        first += [_eval(config, variant, seed, INVERTED) for variant in main]
        first += [_looking(variant, seed) for variant in main]
        first += [_planting(config, variant, seed) for variant in main]
        mixes += _dial_stages(config, seed, [p for p in points if p.mix])
        rest += [
            _attention(config, variant, seed) for variant in asked if variant.name in ATTENTION
        ]
        rest += [_eval(config, variant, seed, INVERTED) for variant in others]
        rest += [_eval(config, variant, seed, "test") for variant in (*main, *others)]
        last += _dial_stages(config, seed, [p for p in points if not p.mix])
    rest += [_heatmap(policy, config.seeds[0]) for policy in ("copy", "route")]
    return in_order([*first, *mixes, *rest, *last], among=list(training.values()))


def checkpoint(variant: Variant, seed: int) -> str:
    """Where the variant's checkpoint is, as a stage's argument."""
    if variant.sft is None:
        return f"{{@{variant.start}}}"
    return f"{{sft-{variant.sft}-{seed}}}/checkpoint"


def asked_seed(config: PlanConfig, variant: Variant, seed: int) -> int:
    """Whose evaluation counts for a seed: the first's where no training tells seeds apart."""
    return config.seeds[0] if variant.sft is None else seed


def eval_name(variant: str, seed: int, split: str, dial: str = "") -> str:
    """The name of the stage that evaluates a variant."""
    slug = variant.lower().replace(" ", "-")
    return "-".join(filter(None, ("eval", slug, dial, str(seed), split)))


def looking_name(variant: str, seed: int, dial: str = "") -> str:
    """The name of the stage that asks whether a variant's reflections look."""
    return eval_name(variant, seed, INVERTED, dial).replace("eval-", "looking-", 1)


def planting_name(variant: str, seed: int, dial: str = "", repeats: int = 1) -> str:
    """The name of the stage that plants errors for a variant's reflections to find."""
    dial += f"-x{repeats}" if repeats > 1 else ""
    return eval_name(variant, seed, INVERTED, dial).replace("eval-", "planting-", 1)


def attention_name(variant: str, seed: int) -> str:
    """The name of the stage that measures a variant's attention."""
    return f"attention-{variant.lower().replace(' ', '-')}-{seed}"


def _training(config: PlanConfig, seed: int) -> Iterator[Stage]:
    steps, answers = config.scaled(config.brpo_steps), config.scaled(config.num_answers)
    worlds = [f"{name}={json.dumps(value)}" for name, value in config.world.items()]
    yield Stage(
        name=f"brpo-{seed}",
        kind="brpo",
        module="train.brpo",
        arguments=(
            *("--ckpt", f"{{@{START}}}", "--output", "{out}", "--preset", "lookworld-tiny"),
            *("--seed", str(seed), "--steps", str(steps), "--engine", "native"),
            *("--validate-every", str(max(1, steps // _NUM_VALIDATIONS))),
            *("--tensorboard", "off"),
            *(part for world in worlds for part in ("--world", world)),
        ),
        result="checkpoint/model.safetensors",
        keep=("brpo.jsonl",),
        minutes=(steps * _BRPO_STEP_S + _NUM_VALIDATIONS * _VALIDATION_S + _START_S) / 60,
    )
    zero = f"{{brpo-{seed}}}/checkpoint"
    yield _bundle(zero)
    for answers_of, ckpt in (("zero", zero), ("cold", f"{{@{START}}}")):
        yield Stage(
            name=f"answers-{answers_of}-{seed}",
            kind="answers",
            module="train.distill",
            arguments=(
                *(*_asked(ckpt), "--output", "{out}/answers.jsonl", "--num", str(answers)),
                *("--batch", str(_BATCH), "--max-tokens", str(_MAX_TOKENS)),
                *("--seed", str(seed), "--first", str(seed * 100_000)),
                *_world_flag(config),
            ),
            result="answers.jsonl.summary.json",
            keep=("answers.jsonl.summary.json",),
            minutes=(answers * _ANSWER_S + _START_S) / 60,
        )
    for name, (reattention, inject, answers_of) in SFTS.items():
        data = ("--data", f"{{answers-{answers_of}-{seed}}}/answers.jsonl")
        sft = f"sft-{name}-{seed}"
        yield _sft(sft, f"{{@{START}}}", config.scaled(config.sft_steps), seed,
                   reattention, inject, data)  # fmt: skip
        yield _bundle(f"{{{sft}}}/checkpoint")


def _bundle(ckpt: str) -> Stage:
    """The engine for a checkpoint that answers questions: the native one is several times faster
    than PyTorch, and in float32 its tokens are the same."""
    return Stage(
        name=_bundle_name(ckpt),
        kind="bundle",
        module="la_trt.cli",
        code=("la_trt.cli.build",),
        arguments=("build", "--backend", "native", "--ckpt", ckpt, "--output", "{out}/bundle"),
        result="bundle/bundle.json",
        minutes=_BUNDLE_S / 60,
    )


def _bundle_name(ckpt: str) -> str:
    return "bundle-" + re.sub(r"[{}@]|/checkpoint", "", ckpt)


def _asked(ckpt: str) -> tuple[str, ...]:
    """The flags of a command that asks a checkpoint's engine."""
    return ("--engine", f"{{{_bundle_name(ckpt)}}}/bundle", "--threads", "1")


def _sft(
    name: str,
    start: str,
    steps: int,
    seed: int,
    reattention: str,
    inject: str,
    source: tuple[str, ...],
) -> Stage:
    return Stage(
        name=name,
        kind=f"sft-{reattention}-{inject}-{steps}",
        module="train.sft",
        arguments=(
            *("--ckpt", start, "--output", "{out}", "--preset", "lookworld-tiny"),
            *("--reattention", reattention, "--inject", inject),
            *("--seed", str(seed), "--steps", str(steps), "--tensorboard", "off"),
            *source,
        ),
        result="checkpoint/model.safetensors",
        keep=("sft.jsonl",) if "--data" in source else (),
        minutes=(steps * _SFT_STEP_S[reattention, inject] + _START_S) / 60,
    )


def _world_flag(config: PlanConfig) -> tuple[str, ...]:
    """The main comparison's world, for commands that take it as JSON."""
    return ("--world", json.dumps(dict(config.world))) if config.world else ()


def _policy_flags(variant: Variant) -> tuple[str, ...]:
    flags = ["--policy", variant.policy]
    if variant.inject is not None:
        flags += ["--inject", variant.inject]
    if variant.percent is not None:
        flags += ["--route-percent", f"{variant.percent:g}"]
    return tuple(flags)


def _eval(
    config: PlanConfig,
    variant: Variant,
    seed: int,
    split: str,
    *,
    ckpt: str | None = None,
    world: Mapping[str, Any] | None = None,
    dial: str = "",
) -> Stage:
    num = config.scaled(config.num_per_family)
    dials = config.world if world is None else world
    return Stage(
        name=eval_name(variant.name, seed, split, dial),
        kind=f"eval-{variant.policy}",
        module="la_trt.cli",
        code=("la_trt.cli.eval",),
        arguments=(
            *("eval", "--suite", "lookworld", "--split", split, "--num-per-family", str(num)),
            *(*_asked(ckpt or checkpoint(variant, seed)), "--output", "{out}/eval"),
            *("--batch", str(_BATCH), "--max-tokens", str(_MAX_TOKENS)),
            *_policy_flags(variant),
            *(p for k, v in dials.items() for p in (f"--{k.replace('_', '-')}", f"{v:g}")),
        ),
        result="eval/report.json",
        keep=("eval/report.json",),
        minutes=(10 * num * _ANSWER_S + _START_S) / 60,
    )


def _looking(variant: Variant, seed: int, dial: str = "") -> Stage:
    asked = eval_name(variant.name, seed, INVERTED, dial)
    return Stage(
        name=looking_name(variant.name, seed, dial),
        kind="looking",
        module="train.looking",
        arguments=("--run", f"{{{asked}}}/eval", "--output", "{out}/looking.json"),
        result="looking.json",
        keep=("looking.json",),
        minutes=0.1,
    )


def _planting(
    config: PlanConfig,
    variant: Variant,
    seed: int,
    ckpt: str | None = None,
    dial: str = "",
    repeats: int = 1,
) -> Stage:
    num = config.scaled(config.planting_per_family)
    return Stage(
        name=planting_name(variant.name, seed, dial, repeats),
        kind=f"planting-x{repeats}" if repeats > 1 else "planting",
        module="train.planting",
        arguments=(
            *(*_asked(ckpt or checkpoint(variant, seed)), "--output", "{out}/planting.json"),
            *("--batch", str(_BATCH), "--max-tokens", str(_MAX_TOKENS * repeats)),
            *("--num-per-family", str(num), *_policy_flags(variant)),
            *(("--repeats", str(repeats)) if repeats > 1 else ()),
            *_world_flag(config),
        ),
        result="planting.json",
        keep=("planting.json",),
        minutes=(10 * num * 2 * repeats * _ANSWER_S + _START_S) / 60,
    )


def _attention(config: PlanConfig, variant: Variant, seed: int) -> Stage:
    num = config.scaled(config.attention_per_family)
    return Stage(
        name=attention_name(variant.name, seed),
        kind="attention",
        module="train.attention",
        arguments=(
            *(*_asked(checkpoint(variant, seed)), "--output", "{out}/attention.json"),
            *("--batch", str(_BATCH), "--max-tokens", str(_MAX_TOKENS)),
            *("--num-per-family", str(num), "--min-answers", str(min(10, max(1, 10 * num // 4)))),
            *_policy_flags(variant),
            *_world_flag(config),
        ),
        result="attention.json",
        keep=("attention.json",),
        minutes=(10 * num * 2 * _ANSWER_S + _START_S) / 60,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where text-only and COPY are compared: trained from input `start` on responses of `world`
    with `mix`, asked about `world`."""

    label: str
    start: str
    world: Mapping[str, Any]
    mix: Mapping[str, Any] = field(default_factory=dict)


def dial_points(config: PlanConfig) -> list[Point]:
    """The main comparison's world, then every point on a dial."""
    points = [Point(label=BASE_POINT, start=START, world=config.world)]
    points += [
        Point(label=f"{name}-{value:g}", start=START, world={**config.world, name: value})
        for name, values in config.dials.items()
        for value in values
    ]
    points += [
        Point(label=name, start=START, world=config.world, mix=mix)
        for name, mix in config.mixes.items()
    ]
    return points + [
        Point(label=f"size-{name}", start=f"{START}-{name}", world=config.world)
        for name in config.sizes
    ]


def _dial_stages(config: PlanConfig, seed: int, points: Sequence[Point]) -> Iterator[Stage]:
    by_name = {variant.name: variant for variant in VARIANTS}
    for point in points:
        # A mix teaches what the cold start did not do: as long as the main comparison teaches.
        steps = config.scaled(config.sft_steps if point.mix else config.dial_steps)
        learned = {**point.world, **point.mix}
        source = [p for k, v in learned.items() for p in ("--world", f"{k}={json.dumps(v)}")]
        for name in DIALLED:
            variant = by_name[name]
            assert variant.sft is not None, "a dialled variant is trained"
            reattention, inject, _ = SFTS[variant.sft]
            sft = f"sft-{variant.sft}-{point.label}-{seed}"
            yield _sft(sft, f"{{@{point.start}}}", steps, seed, reattention, inject, tuple(source))
            yield _bundle(f"{{{sft}}}/checkpoint")
            yield _eval(
                config,
                variant,
                seed,
                INVERTED,
                ckpt=f"{{{sft}}}/checkpoint",
                world=point.world,
                dial=point.label,
            )
            yield _looking(variant, seed, point.label)
            for repeats in config.planting_repeats if point.mix else ():
                ckpt = f"{{{sft}}}/checkpoint"
                yield _planting(config, variant, seed, ckpt, point.label, repeats)


def _heatmap(policy: str, seed: int) -> Stage:
    question = "How many red objects do you see?"
    return Stage(
        name=f"heatmap-{policy}",
        kind="heatmap",
        module="la_trt.cli",
        code=("la_trt.cli.infer",),
        arguments=(
            *("infer", *_asked(f"{{sft-{policy}-{seed}}}/checkpoint")),
            *("--image", "{@picture}", "--prompt", question, "--policy", policy),
            *("--heatmap", "{out}/heatmap.png"),
        ),
        result="heatmap.png",
        keep=("heatmap.png",),
        minutes=1.0,
    )
