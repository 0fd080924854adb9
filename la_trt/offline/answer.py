"""From rows to records: what a batch writes for every question, answered or refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from la_trt.api import LookAgain, make_options
from la_trt.errors import InputError, LookAgainError, UsageError
from la_trt.eval.images import image_of
from la_trt.eval.rows import RowError
from la_trt.events import DoneEvent, Result
from la_trt.limits import DEFAULT_MAX_TOKENS
from la_trt.offline.rows import BatchRow
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt

Record = dict[str, Any]
_PIXEL_BYTES = 256 << 20  # of prompts that wait their turn


class Answerer:
    """Answers rows with one model. `settings`: those of `make_options`, for rows that name none.

    `max_tokens` None among them: DEFAULT_MAX_TOKENS, or what the context has left.
    `images`: the directory below which image names are looked up. Every row draws from a random
    stream of its own, made of the seed and its id: an answer depends neither on the rows around
    it nor on the worker, so that a batch that was killed ends as if it had not been.
    """

    def __init__(self, model: LookAgain, settings: Mapping[str, Any], images: Path) -> None:
        self.model = model
        self._settings = dict(settings)
        self._images = images

    def answer(self, rows: Sequence[BatchRow]) -> Iterator[Record]:
        """The record of every row, as they are finished. Raises MachineError alone."""
        asked: list[BatchRow] = []
        prompts: list[Prompt] = []
        options: list[GenerationOptions] = []
        num_bytes = 0
        for row in rows:
            try:
                prompt, option = self._prepare(row)
            except (InputError, UsageError) as error:
                yield refused(row.number, row.id, error)
                continue
            asked.append(row)
            prompts.append(prompt)
            options.append(option)
            num_bytes += prompt.pixel_values.nbytes
            if num_bytes >= _PIXEL_BYTES:
                yield from self._run(asked, prompts, options)
                asked, prompts, options, num_bytes = [], [], [], 0
        if asked:
            yield from self._run(asked, prompts, options)

    def _run(
        self,
        asked: Sequence[BatchRow],
        prompts: Sequence[Prompt],
        options: Sequence[GenerationOptions],
    ) -> Iterator[Record]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="policy .* never looks again")
            for event in self.model.session.generate_batch(prompts, options):
                if isinstance(event, DoneEvent):
                    yield answered(asked[event.sequence], event.result)

    def _prepare(self, row: BatchRow) -> tuple[Prompt, GenerationOptions]:
        """Raises InputError, UsageError."""
        named = {"max_tokens": row.max_tokens, "temperature": row.temperature, "policy": row.policy}
        given = {name: value for name, value in named.items() if value is not None}
        asked = {**self._settings, **given}
        most = asked.pop("max_tokens")
        options = make_options(**asked, max_tokens=DEFAULT_MAX_TOKENS if most is None else most)
        if row.seed is None:
            sampling = options.sampling.own_stream(row.id)
        else:
            sampling = replace(options.sampling, seed=row.seed)
        options = replace(options, sampling=sampling)
        try:
            images = [image_of(image, self._images) for image in row.images]
        except RowError as problem:
            raise InputError(str(problem), name="E_IMAGE") from None
        prompt = self.model.prompt(images, row.prompt, system=row.system, max_tokens=most or 1)
        if most is None:
            most = min(options.max_tokens, self.model.room(prompt))
            options = replace(options, max_tokens=most)
        self.model.session.check(prompt, options)
        return prompt, options


def answered(row: BatchRow, result: Result) -> Record:
    """The line of an answer: plain JSON values, none of which depends on the time it took."""
    return {
        "line": row.number,
        "id": row.id,
        "text": result.text,
        "conclusion": result.conclusion,
        "finish_reason": result.finish_reason,
        "policy": result.policy,
        "prompt_tokens": result.usage.prompt_tokens,
        "completion_tokens": result.usage.completion_tokens,
        "visual_tokens": result.usage.visual_tokens,
        "reinjected_tokens": result.usage.reinjected_tokens,
        "reflections": result.num_reflections,
    }


def refused(number: int, row_id: str, error: LookAgainError) -> Record:
    """The line of a row that could not be asked, with the first line of the reason."""
    message = (str(error).strip().splitlines() or [""])[0]
    return {"line": number, "id": row_id, "error": {"code": error.name, "message": message}}
