"""Asks the questions of a suite, several at a time, and keeps every answer as it comes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from la_trt.api import LookAgain
from la_trt.errors import InputError, UsageError
from la_trt.eval.items import BadRow, Item, Score, Suite
from la_trt.eval.store import Run
from la_trt.events import DoneEvent, Result
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt

Progress = Callable[[int, int, int], None]  # answered, all that can be asked, right
_PIXEL_BYTES = 256 << 20  # of prompts that wait their turn


def ask(
    model: LookAgain,
    suite: Suite,
    items: Sequence[Item],
    options: GenerationOptions,
    run: Run,
    *,
    progress: Progress | None = None,
) -> list[BadRow]:
    """The questions that could not be asked (a damaged image, too long a prompt); others answered.

    Every answer is appended to `run` when it is finished; what `run` has is not asked again. Each
    question draws from a random stream of its own, made of the seed and its id, so that an
    answer depends neither on its batch nor on what was asked before. Raises UsageError E_RESUME
    where an answer in `run` belongs to another question of the same id, and InputError E_DATASET
    where not one question can be asked.
    """
    _check_answers(run, items)
    waiting = [item for item in items if item.id not in run.answers]
    right = sum(
        suite.score(item, suite.final(run.answers[item.id]["text"])).correct
        for item in items
        if item.id in run.answers
    )
    done, bad = len(items) - len(waiting), list[BadRow]()
    started = time.perf_counter()

    def tell() -> None:
        if progress is not None:
            progress(done, len(items) - len(bad), right)

    tell()
    with warnings.catch_warnings():
        for asked, prompts in _groups(model, waiting, options, bad):
            sampling = [options.sampling.own_stream(item.id) for item in asked]
            settings = [replace(options, sampling=own) for own in sampling]
            for event in model.session.generate_batch(prompts, settings):
                if not isinstance(event, DoneEvent):
                    continue
                item, now = asked[event.sequence], time.perf_counter()
                answer = suite.final(event.result.text)
                score = suite.score(item, answer)
                run.append(record(item, event.result, answer, score, now - started))
                started, done, right = now, done + 1, right + score.correct
                tell()
            # Said once, not with every batch.
            warnings.filterwarnings("ignore", message="policy .* never looks again")
    if not done and bad:
        raise InputError(
            f"suite {suite.name}: no question could be asked: {bad[0]}\n"
            "check the images, or raise --max-model-len",
            name="E_DATASET",
        )
    return bad


def record(
    item: Item, result: Result, answer: str, score: Score, seconds: float
) -> dict[str, object]:
    """The line of an answer: plain JSON values. `seconds` since the answer before it."""
    return {
        "id": item.id,
        "sha256": item.sha256,
        "category": item.category,
        "question": item.text,
        "expected": item.expected,
        "text": result.text,
        "answer": answer,
        "said": score.said,
        "correct": score.correct,
        "finish_reason": result.finish_reason,
        "tokens": result.usage.completion_tokens,
        "reflections": result.num_reflections,
        "reinjected_tokens": result.usage.reinjected_tokens,
        "skipped_injections": sum(bool(r.skipped) for r in result.reinjections),
        "seconds": round(seconds, 4),
    }


def _check_answers(run: Run, items: Sequence[Item]) -> None:
    for item in items:
        if item.id in run.answers and run.answers[item.id]["sha256"] != item.sha256:
            raise UsageError(
                f"{run.path}: holds an answer to another {item.id[:60]!r}: the data differ\n"
                "choose another --output, or start afresh with --no-resume",
                name="E_RESUME",
            )


def _groups(
    model: LookAgain, items: Sequence[Item], options: GenerationOptions, bad: list[BadRow]
) -> Iterator[tuple[list[Item], list[Prompt]]]:
    """Questions with their prompts, enough at a time to keep the engine's batch full."""
    most = 16 * model.engine.limits.max_batch
    asked: list[Item] = []
    prompts: list[Prompt] = []
    size = 0
    for item in items:
        try:
            prompt = model.prompt([], item.messages(), max_tokens=options.max_tokens)
        except InputError as error:
            reason = " ".join(str(error).splitlines()[:1])
            bad.append(BadRow(where=f"question {item.id}", reason=reason))
            continue
        asked.append(item)
        prompts.append(prompt)
        size += prompt.pixel_values.nbytes
        if len(asked) >= most or size >= _PIXEL_BYTES:
            yield asked, prompts
            asked, prompts, size = [], [], 0
    if asked:
        yield asked, prompts
