"""Asks a model the questions of examples, through a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from la_trt.errors import InputError, UsageError
from la_trt.events import Result
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt
from la_trt.session import Session
from train.data import Example
from train.tasks import answer_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Asks a model through a session; an answer is a Result, or the reason why there is none."""

    session: Session
    processor: Callable[[str, Sequence[Any]], Prompt]
    options: GenerationOptions
    seed: int = 0

    def __post_init__(self) -> None:
        most = self.session.engine.limits.max_len
        if self.options.max_tokens >= most:
            raise UsageError(
                f"max_tokens: expected fewer than the model's {most}, got "
                f"{self.options.max_tokens}\nno question would fit besides"
            )

    def __call__(self, examples: Sequence[Example], first: int) -> list[Result | str]:
        """The answers, in order; `first` is the number of the first question in the run."""
        answers: list[Result | str] = [""] * len(examples)
        prompts, options, places = [], [], []
        room = self.session.engine.limits.max_len - self.options.max_tokens
        for k, example in enumerate(examples):
            try:
                prompt = self.processor(example.question, example.images)
            except InputError as error:
                answers[k] = f"refused {error.name}"
                continue
            if len(prompt.input_ids) > room:
                answers[k] = "prompt too long"
                continue
            prompts.append(prompt)
            places.append(k)
            options.append(self._options(first + k))
        for k, result in zip(places, self.session.results(prompts, options), strict=True):
            ended = {"length": "cut off", "numerical_error": "numbers not finite"}
            answers[k] = ended.get(result.finish_reason, result)
        return answers

    def _options(self, number: int) -> GenerationOptions:
        sampling = replace(self.options.sampling, seed=answer_seed(self.seed, number))
        return replace(self.options, sampling=sampling)
