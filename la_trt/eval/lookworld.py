"""LookWorld's scores of an engine, through a session: by family and policy, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from la_trt.events import Result
from la_trt.lookworld import (
    FAMILIES,
    Sample,
    WorldConfig,
    by_family,
    chair,
    chair_metrics,
    is_correct,
    pope_metrics,
    sample,
)
from la_trt.options import GenerationOptions
from la_trt.processor.prompt import Processor
from la_trt.reattention.policy import Policy
from la_trt.session import Session
from la_trt.tags import conclusion, parse_tags

_ORDER = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """`num_per_family` questions of each family, the split's first ones, greedy."""

    split: str = "test"
    num_per_family: int = 30
    max_tokens: int = 700
    batch: int = 16
    families: tuple[str, ...] = FAMILIES
    world: WorldConfig = field(default_factory=WorldConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question asked: what was right, what was said."""

    family: str
    question: str
    expected: str
    text: str
    conclusion: str
    correct: bool
    well_formed: bool
    reflections: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All scores of one policy on one split; `scores` is plain JSON."""

    policy: str
    split: str
    scores: dict[str, Any]
    answers: tuple[Answer, ...]


def questions(config: EvalConfig) -> list[Sample]:
    """The samples to ask: the first `num_per_family` of each family, in turn."""
    return [
        sample(config.split, index, config.world, family)
        for index in range(config.num_per_family)
        for family in config.families
    ]


def evaluate(
    session: Session,
    processor: Processor,
    policy: Policy,
    config: EvalConfig | None = None,
    *,
    samples: Sequence[Sample] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """The scores of a policy. `samples` saves drawing the same questions for each policy.

    `progress(done, total)` is called after every batch.
    """
    config = config or EvalConfig()
    samples = questions(config) if samples is None else samples
    options = GenerationOptions(policy=policy, max_tokens=config.max_tokens)
    answers: list[Answer] = []
    for start in range(0, len(samples), config.batch):
        part = samples[start : start + config.batch]
        prompts = [processor(s.question.text, [s.image]) for s in part if s.image is not None]
        assert len(prompts) == len(part), "samples need their images"
        results = session.results(prompts, options)
        answers += [_answer(s, r) for s, r in zip(part, results, strict=True)]
        if progress is not None:
            progress(len(answers), len(samples))
    return Report(
        policy=policy.name if policy.inject == "embed" else f"{policy.name} (kv)",
        split=config.split,
        scores=_scores(samples, answers),
        answers=tuple(answers),
    )


def _answer(asked: Sample, result: Result) -> Answer:
    parsed = parse_tags(result.text)
    said = conclusion(result.text)
    return Answer(
        family=asked.question.family,
        question=asked.question.text,
        expected=asked.answer,
        text=result.text,
        conclusion=said,
        correct=is_correct(asked.question, said, asked.scene),
        well_formed=well_formed(result.text),
        reflections=len(parsed.of("REFLECTION")),
        num_tokens=len(result.tokens),
    )


def well_formed(text: str) -> bool:
    """Whether an answer has the response format (paper, section 2), which training rewards.

    SUMMARY, CAPTION, REASONING and CONCLUSION stand once each, in that order, none of them
    empty. REFLECTION stands anywhere between the first and the last of them, any number of
    times, and may be empty. Nothing nests or overlaps; outside the sections there is white space
    at most. The paper's text leaves open how often each section may stand and what may stand
    outside them: this is the strict reading, which leaves nothing to be gained by repetition.
    """
    parsed = parse_tags(text)
    sections = parsed.sections
    if parsed.flaw or not sections:
        return False
    plain = [s for s in sections if s.name != "REFLECTION"]
    if tuple(s.name for s in plain) != _ORDER or not all(s.body.strip() for s in plain):
        return False
    ends = [0, *(s.end for s in sections)]
    starts = [*(s.start for s in sections), len(text)]
    outside = "".join(text[a:b] for a, b in zip(ends, starts, strict=True))
    inside = sections[0].name == _ORDER[0] and sections[-1].name == _ORDER[-1]
    return inside and not outside.strip()


def _scores(samples: Sequence[Sample], answers: Sequence[Answer]) -> dict[str, Any]:
    families = by_family([(a.family, a.correct) for a in answers])
    scores: dict[str, Any] = {
        "accuracy": {name: asdict(value) for name, value in families.items()},
        "format_frac": sum(a.well_formed for a in answers) / len(answers),
        "reflections_mean": sum(a.reflections for a in answers) / len(answers),
        "tokens_mean": sum(a.num_tokens for a in answers) / len(answers),
    }
    pairs = list(zip(samples, answers, strict=True))
    existing = [
        (s.question.setting, s.answer, a.conclusion) for s, a in pairs if a.family == "exist"
    ]
    if existing:
        pope = pope_metrics(existing)
        scores["pope"] = {setting: asdict(value) for setting, value in pope.items()}
        asked = [value.f1 for value in pope.values() if value.num_positives]
        scores["pope_f1_mean"] = sum(asked) / len(asked) if asked else None
    described = [chair(a.conclusion, s.scene) for s, a in pairs if a.family == "describe"]
    if described:
        scores["chair"] = asdict(chair_metrics(described))
    return scores
