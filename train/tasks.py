"""Questions with a right answer, one after another, from a position that a run can go on from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from la_trt.errors import InputError, UsageError
from la_trt.lookworld import WorldConfig, sample
from la_trt.processor.prompt import Processor
from la_trt.processor.types import Prompt
from train.data import Example, read_examples

# Each seed has a million samples of LookWorld's train split: BRPO asks about the first half, SFT
# learns from the second.
SEED_STRIDE = 1_000_000
HALF = SEED_STRIDE // 2
NUM_SEEDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A tokenised question; `seed` is what its answers are drawn from."""

    prompt: Prompt
    answer: str
    seed: int
    name: str


class Tasks(Protocol):
    """An endless source. `position`: where it goes on. `skipped`: what was left out, by reason."""

    @property
    def position(self) -> int: ...

    @property
    def skipped(self) -> Counter[str]: ...

    def take(self) -> Task: ...


def answer_seed(seed: int, position: int) -> int:
    """The seed of the answers to the question at that position, below 2**63."""
    return int(np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)[0] >> 1)


def first_sample(seed: int) -> int:
    """The index of the seed's first sample. Raises UsageError for a seed that has none."""
    if not 0 <= seed < NUM_SEEDS:
        raise UsageError(f"seed: expected 0 to {NUM_SEEDS - 1}, got {seed}")
    return (1 + seed) * SEED_STRIDE


class LookWorldTasks:
    """Questions of LookWorld's train split; other seeds have other questions."""

    def __init__(
        self,
        processor: Processor,
        *,
        seed: int,
        world: WorldConfig | None = None,
        position: int = 0,
    ) -> None:
        self.processor, self.seed = processor, seed
        self.position, self._first = position, first_sample(seed)
        self.world = world or WorldConfig()
        self.skipped: Counter[str] = Counter()

    def take(self) -> Task:
        """The next question."""
        at = self.position
        self.position += 1
        drawn = sample("train", self._first + at % HALF, self.world)
        assert drawn.image is not None, "a sample without its picture"
        return Task(
            prompt=self.processor(drawn.question.text, [drawn.image]),
            answer=drawn.answer,
            seed=answer_seed(self.seed, at),
            name=drawn.question.family,
        )


class FileTasks:
    """Questions of a JSONL file (`train.data`), shuffled anew in every epoch, without end.

    A row without a right answer, a bad row, and a prompt of more than `max_prompt` tokens are
    skipped and counted. Raises InputError where no row can be used.
    """

    def __init__(
        self,
        processor: Processor,
        path: Path,
        images: Path | None = None,
        *,
        seed: int,
        max_prompt: int,
        position: int = 0,
    ) -> None:
        self.processor, self.seed, self.max_prompt = processor, seed, max_prompt
        self._reader = read_examples(
            path, images, seed=seed, start=position, epochs=None, require=("answer",)
        )
        self._reader.refuse_empty()
        self._refused: Counter[str] = Counter()
        self.fingerprint = self._reader.fingerprint

    @property
    def position(self) -> int:
        return self._reader.position

    @property
    def skipped(self) -> Counter[str]:
        return self._reader.skipped + self._refused

    def take(self) -> Task:
        """The next question that can be asked."""
        for _ in range(2 * self._reader.num_rows):
            example = next(self._reader)
            at = self._reader.position - 1
            try:
                prompt = self._prompt(example)
            except InputError as error:
                self._refused[error.name] += 1
                continue
            assert example.answer, "a row without an answer got through"
            return Task(
                prompt=prompt,
                answer=example.answer,
                seed=answer_seed(self.seed, at),
                name="file" if example.lookworld is None else example.lookworld.family or "any",
            )
        raise InputError(
            f"{self._reader.path}: no question fits {self.max_prompt} tokens\n"
            "raise max_length, or lower max_pixels",
            name="E_DATA",
        )

    def _prompt(self, example: Example) -> Prompt:
        return self.processor(example.question, example.images, max_length=self.max_prompt)


def with_pixel_limit(processor: Processor, max_pixels: int) -> Processor:
    """The processor with pictures of at most that many pixels; 0: as it is."""
    if not max_pixels:
        return processor
    config = replace(
        processor.image_config,
        max_pixels=max_pixels,
        min_pixels=min(max_pixels, processor.image_config.min_pixels),
    )
    return Processor(processor.vocabulary, config, processor.template, processor.limits)
