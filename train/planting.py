"""Whether a reflection finds an error that did not come from the eyes.

`python -m train.planting --engine DIR --policy copy --output FILE.json`: what a model misnames by
looking it may misname again by a second look, so an answer of its own cannot tell a reflection that
does not look from eyes that do not see. Here the answer begins as LookWorld's own response does, up
to and with `<REFLECTION>`, and the model goes on: once with one wrong entry planted in the caption,
from which the reasoning follows, once as things are. What it then names is counted as in
`train.looking`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from la_trt.api import LookAgain, make_options
from la_trt.errors import UsageError
from la_trt.events import InjectKind
from la_trt.files.atomic import atomic_file
from la_trt.lookworld import FAMILIES, Sample, WorldConfig, is_correct, sample
from la_trt.tags import parse_tags
from train.answering import Split, model_options, open_model, policy_flags
from train.command import run
from train.looking import Looks, looks, summarise
from train.options import config_options
from train.progress import RunLog
from train.rows import world_of_text

_OPEN = "<REFLECTION>"
# What is planted, as fields of the world: an error in every caption that can hold one, or in none.
PLANTS: Mapping[str, Mapping[str, Any]] = {
    "planted": {"error_rate": 1.0, "caption_error_frac": 1.0},
    "as it is": {"error_rate": 0.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantingConfig:
    """What is asked, and with which policy the model goes on.

    `num_per_family` questions of each family, the split's first ones; those that no single error
    misleads are left out. `world`: JSON of what differs
    from the default WorldConfig. `inject`: embed or kv. `repeats`: how often the given reasoning is
    said, so that the reflection stands farther from the image. `max_tokens`: of an answer, its
    given beginning included.
    """

    split: Split = "test-inverted"
    num_per_family: int = 30
    policy: str = "copy"
    inject: InjectKind = "embed"
    route_percent: float = 50.0
    repeats: int = 1
    max_tokens: int = 700
    batch: int = 32
    world: str = '{"reasoning_length": 3}'  # as it was learnt

    def __post_init__(self) -> None:
        if min(self.batch, self.num_per_family, self.repeats) < 1:
            raise UsageError("batch, num_per_family, repeats: expected at least 1")
        policy_flags(self.policy, self.inject, self.route_percent)


def beginning(drawn: Sample, repeats: int = 1) -> str:
    """LookWorld's response to the sample's question, up to and with its first `<REFLECTION>`.

    The body of its REASONING is said `repeats` times.
    """
    text = drawn.response.text
    reasoning = parse_tags(text).of("REASONING")[0]
    again = (" " + reasoning.body) * (repeats - 1)
    end = reasoning.end - len("</REASONING>")
    return text[:end] + again + text[end : text.index(_OPEN) + len(_OPEN)]


def planted(config: PlantingConfig, world: WorldConfig, plant: str) -> list[Sample]:
    """The samples of one entry of PLANTS, of the questions that some single error misleads."""
    made = replace(world, **PLANTS["planted"])
    own = replace(world, **PLANTS[plant])
    found = []
    for index in range(config.num_per_family):
        for family in FAMILIES:
            if sample(config.split, index, made, family, want_image=False).response.spans:
                found.append(sample(config.split, index, own, family))
    return found


def go_on(
    model: LookAgain,
    samples: Sequence[Sample],
    config: PlantingConfig,
    progress: Callable[[int, str], None] | None = None,
) -> list[Looks]:
    """What the whole answers name, in the order of the samples; greedy."""
    flags = policy_flags(config.policy, config.inject, config.route_percent)
    encode, found = model.processor.vocabulary.encode, list[Looks]()
    for start in range(0, len(samples), config.batch):
        part = samples[start : start + config.batch]
        prompts = [model.processor(s.question.text, [s.image]) for s in part if s.image is not None]
        options = [
            make_options(
                **flags,
                max_tokens=config.max_tokens,
                forced=encode(beginning(s, config.repeats), control=True),
            )
            for s in part
        ]
        for drawn, result in zip(part, model.session.results(prompts, options), strict=True):
            right = is_correct(drawn.question, result.conclusion, drawn.scene)
            found.append(looks(result.text, drawn, right))
        if progress is not None:
            progress(len(found), f"{sum(one.mended for one in found)} mended")
    return found


def _words(of: Mapping[str, Any]) -> str:
    right = of["correct_beside_right_caption"] + of["correct_beside_wrong_caption"]
    return (
        f"{right} of {of['answers']} answers right; {of['mended']} of {of['misread']} wrong "
        f"entries mended, {of['spoiled']} of {of['named'] - of['misread']} right ones spoiled"
    )


@click.command(help=__doc__)
@config_options(PlantingConfig)
@model_options
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON to write")
def main(
    ckpt: Path | None, engine: Path | None, threads: int | None, output: Path, **values: Any
) -> None:
    """Whether a reflection finds an error that did not come from the eyes."""
    config = PlantingConfig(**values)
    world = world_of_text(config.world)
    model = open_model(ckpt, engine, threads, config.batch)
    found: dict[str, Any] = {"config": asdict(config)}
    for plant in PLANTS:
        samples = planted(config, world, plant)
        name = f"{output.stem}.{plant.replace(' ', '-')}.metrics"
        with RunLog(output.parent, name, total=len(samples)) as log:
            found[plant] = summarise(go_on(model, samples, config, log.advance))
        asked = config.num_per_family * len(FAMILIES)
        click.echo(f"{plant}: {_words(found[plant])}, of {asked} questions", err=True)
    with atomic_file(output) as file:
        file.write(json.dumps(found).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(run(main, goes_on=""))
