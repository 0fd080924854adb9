"""Samples of the splits: a scene, its picture, a question and a response to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from la_trt.errors import UsageError
from la_trt.lookworld.config import COLOURS, FAMILIES, SHAPES, WorldConfig
from la_trt.lookworld.questions import SETTINGS, Question, ask
from la_trt.lookworld.render import render
from la_trt.lookworld.respond import Response, respond
from la_trt.lookworld.scene import Scene, generate_scene

SPLIT_SEEDS = {"train": 11, "validation": 12, "test": 13, "test-inverted": 14}
MAX_SCENES = 256  # a sample's own, tried until one allows the wanted question
MORE_SCENES = 4096  # of seeds that no split has, where none of its own does: a rare colour is asked
_MORE_SEED = 100  # added to the split's
# Answers that are asked for, so that none is common; other families follow the scene.
_ANSWERS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "count": (("0", "1", "2", "3", "4", "5", "6"), (0.12, 0.2, 0.2, 0.18, 0.14, 0.1, 0.06)),
    "exist": (("Yes", "No"), (0.5, 0.5)),
    "colour": (COLOURS, (1 / 7,) * 7),
    "shape": (SHAPES, (1 / 4,) * 4),
    "place": (("left", "right", "top", "bottom"), (1 / 4,) * 4),
    "relation": (("Yes", "No"), (0.5, 0.5)),
    "compare": (("Yes", "No"), (0.5, 0.5)),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample; `image` is None where it was not wanted."""

    image: Image.Image | None
    scene: Scene
    question: Question
    response: Response
    answer: str


def sample(
    split: str,
    index: int,
    config: WorldConfig,
    family: str | None = None,
    *,
    want_image: bool = True,
) -> Sample:
    """The sample of (split, index), of `family` or of one drawn by `config.family_weights`.

    `test-inverted` turns `config.inverted` around. Scenes of different splits never share a
    seed. Raises: UsageError where the config allows no such question.
    """
    if split not in SPLIT_SEEDS:
        raise UsageError(f"split: expected one of {', '.join(SPLIT_SEEDS)}, got {split!r}")
    seed = SPLIT_SEEDS[split]
    if split == "test-inverted":
        config = replace(config, inverted=not config.inverted)
    rng = np.random.default_rng((seed, index, 2))
    if family is None:
        weights = np.array(config.family_weights)
        family = FAMILIES[int(rng.choice(len(FAMILIES), p=weights / weights.sum()))]
    answer = setting = None
    if family in _ANSWERS:
        answers, shares = _ANSWERS[family]
        answer = answers[int(rng.choice(len(answers), p=shares))]
    if family == "exist":
        setting = SETTINGS[int(rng.integers(len(SETTINGS)))]
    for scene in _scenes(seed, index, config):
        question = ask(scene, rng, family, answer=answer, setting=setting)
        if question is not None:
            image = render(scene) if want_image else None
            response = respond(scene, question, rng, config)
            return Sample(image, scene, question, response, question.answer)
    raise UsageError(
        f"world config: none of {MAX_SCENES + MORE_SCENES} scenes allows a question of the family "
        f"{family} with the answer {answer}; raise max_objects or set its family weight to 0"
    )


def _scenes(seed: int, index: int, config: WorldConfig) -> Iterator[Scene]:
    for attempt in range(MAX_SCENES):
        yield generate_scene(seed, index * MAX_SCENES + attempt, config)
    for attempt in range(MORE_SCENES):
        yield generate_scene(seed + _MORE_SEED, index * MORE_SCENES + attempt, config)


def all_text(num: int, config: WorldConfig | None = None) -> Iterator[str]:
    """The questions and responses of the first `num` training samples, to train a tokenizer on."""
    config = config or WorldConfig()
    for index in range(num):
        drawn = sample("train", index, config, want_image=False)
        yield drawn.question.text
        yield drawn.response.text
