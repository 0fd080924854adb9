"""What guessing tokens ahead gains: one sequence, with 0 to 3 guesses a step in turns.

    python -m benchmarks.speculate [--engine BUNDLE] [--answers 10] [--learn 60] [--name NAME]

The answers are the shipped model's to questions of LookWorld. Without --engine it says them again,
with its pictures and copies; with one, that engine is made to say the same tokens behind a prompt
of --context random ones, so that a model of another shape is timed at guesses that come true as
often as these. `cold` has this answer alone to guess from, `learned` the answers to --learn other
questions as well; `wrong` knows a wrong one always: the most that guessing can cost. Every
answer is compared with the one without guesses, log-probabilities too, bit for bit. Ends with one
JSON line.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.report import bounds_of, median_and_bounds, publish
from build_engines.build import build
from la_trt import LookAgain
from la_trt.api import make_options
from la_trt.assets import TINY_CHECKPOINT
from la_trt.events import DoneEvent, TokenEvent
from la_trt.lookworld import FAMILIES, WorldConfig, sample
from la_trt.options import GenerationOptions
from la_trt.processor.types import Prompt
from la_trt.session import Session
from la_trt.speculate import NgramDrafter

CASES = ("cold", "learned", "wrong")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is asked, and the tokens that are answered."""

    prompt: Prompt
    options: GenerationOptions
    tokens: list[int]


def question(index: int, model: LookAgain) -> Prompt:
    """Question `index` of the test split, the families in turn."""
    number, family = divmod(index, len(FAMILIES))
    drawn = sample("test", number, WorldConfig(), FAMILIES[family])
    assert drawn.image is not None
    return model.prompt([drawn.image], drawn.question.text, max_tokens=700)


def text_prompt(num_tokens: int, vocab_size: int, seed: int) -> Prompt:
    """A prompt of random tokens, no picture."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, num_tokens)
    return Prompt(
        text="",
        input_ids=ids.astype(np.int64),
        visual_row=np.full(num_tokens, -1, np.int64),
        position_ids=np.tile(np.arange(num_tokens, dtype=np.int64), (3, 1)),
        pixel_values=np.zeros((0, 1176), np.float32),
        image_grid_thw=np.zeros((0, 3), np.int64),
        next_position=num_tokens,
    )


def say(session: Session, answer: Answer) -> tuple[list[tuple[int, float]], float]:
    """(token, logprob) of an answer, and the seconds between its first and last token."""
    said: list[tuple[int, float]] = []
    first = last = 0.0
    for event in session.stream(answer.prompt, answer.options):
        if isinstance(event, TokenEvent):
            last = time.perf_counter()
            first = first if said else last
            said.append((event.token_id, event.logprob))
        elif isinstance(event, DoneEvent):
            assert event.result.finish_reason != "numerical_error", "numbers that are not finite"
    return said, last - first


class WrongDrafter(NgramDrafter):
    """Guesses the token before each that will be said."""

    def __init__(self, num_tokens: int, answer: list[int]) -> None:
        super().__init__(num_tokens)
        self._answer = answer

    def _find(self, tokens: Sequence[int], count: int) -> list[int]:
        """As many as asked for, all of them wrong."""
        return [t - 1 if t else 1 for t in self._answer[len(tokens) : len(tokens) + count]]


def fresh(model: LookAgain, num_guesses: int, learned: list[list[int]]) -> Session:
    """A session of the model's engine that remembers `learned`."""
    session = Session(model.engine, model.processor.vocabulary, speculate=num_guesses)
    if session.drafter is not None:
        for tokens in learned:
            said: list[int] = []
            for token in tokens:
                said.append(token)
                session.drafter.learn(said)
    return session


def measure(
    model: LookAgain,
    answers: list[Answer],
    learned: list[list[int]],
    guesses: tuple[int, ...],
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """A row for each case and number of guesses: tokens a step, tok/s, times as fast as none."""
    cases = [("", 0), *((case, n) for case in CASES for n in guesses)]
    seconds: list[list[float]] = [[] for _ in cases]
    steps = [0 for _ in cases]
    tokens = sum(len(answer.tokens) - 1 for answer in answers)
    say(fresh(model, 0, []), answers[0])  # warms up
    for number, answer in enumerate(answers):
        expected: list[Any] = []
        # Each runs after a different one each time; the first is the one without guesses.
        turn = number % (len(cases) - 1)
        for i in [0, *range(1 + turn, len(cases)), *range(1, 1 + turn)]:
            case, num_guesses = cases[i]
            session = fresh(model, num_guesses, learned if case == "learned" else [])
            if case == "wrong":
                session.drafter = WrongDrafter(num_guesses, answer.tokens)
            said, took = say(session, answer)
            expected = expected or said
            assert said == expected, f"{cases[i]}: another answer"
            accepted = session.drafter.num_accepted if session.drafter else 0
            seconds[i].append(took)
            steps[i] += len(said) - 1 - accepted
            advance(1)
    return [
        {
            "case": case,
            "guesses": n,
            "tokens_per_step": tokens / count,
            "tok_s": statistics.median(
                (len(a.tokens) - 1) / s for a, s in zip(answers, times, strict=True)
            ),
            "gain": median_and_bounds([a / b for a, b in zip(seconds[0], times, strict=True)]),
        }
        for (case, n), count, times in zip(cases, steps, seconds, strict=True)
    ]


def to_table(result: dict[str, Any]) -> str:
    """Markdown: a row for each case and number of guesses."""
    bounds = bounds_of(result["answers"])
    lines = [
        f"{result['what']}, {result['threads']} threads, one sequence: {result['answers']} answers "
        f"of {result['tokens']} tokens together, learned from {result['learned']} others.",
        "",
        f"| guesses from | a step | tokens a step | tok/s | times as fast ({bounds}) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        median, low, high = row["gain"]
        gain = f"{median:.2f} ({low:.2f} to {high:.2f})" if row["guesses"] else ""
        cells = (
            row["case"] or "none",
            row["guesses"],
            f"{row['tokens_per_step']:.2f}",
            f"{row['tok_s']:.1f}",
            gain,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--engine", type=click.Path(path_type=Path, exists=True), help="Bundle to time.")
@click.option("--context", default=512, show_default=True, help="Tokens of its prompts.")
@click.option("--answers", "num_answers", default=10, show_default=True, help="Timed.")
@click.option("--learn", "num_learned", default=60, show_default=True, help="Answers before.")
@click.option("--guess", "guesses", multiple=True, type=int, default=(1, 2, 3), show_default=True)
@click.option("--threads", default=os.cpu_count(), show_default=True)
@click.option("--name", default="speculate", show_default=True, help="Of the results' file.")
def main(
    engine: Path | None,
    context: int,
    num_answers: int,
    num_learned: int,
    guesses: tuple[int, ...],
    threads: int,
    name: str,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "tiny"
        build(TINY_CHECKPOINT, bundle, graphs=False)
        tiny = LookAgain.from_bundle(bundle, backend="native", threads=threads)
        greedy = make_options(policy="copy", max_tokens=700)
        label = "letting the shipped model answer"
        with click.progressbar(
            range(num_learned + num_answers), label=label, file=sys.stderr
        ) as numbers:
            prompts = [question(i, tiny) for i in numbers]
        said = [result.tokens for result in tiny.session.results(prompts, greedy)]
        timed = range(num_learned, num_learned + num_answers)
        if engine is None:
            model, what = tiny, "The shipped model"
            answers = [Answer(prompt=prompts[i], options=greedy, tokens=said[i]) for i in timed]
        else:
            model = LookAgain.from_bundle(engine, backend="native", threads=threads)
            what = f"{engine.name}, made to say the shipped model's answers behind {context} tokens"
            answers = [
                Answer(
                    prompt=text_prompt(context, model.engine.config.text.vocab_size, i),
                    options=make_options(
                        policy="text", forced=said[i], max_tokens=len(said[i]), ignore_eos=True
                    ),
                    tokens=said[i],
                )
                for i in timed
            ]
        length = num_answers * (1 + len(CASES) * len(guesses))
        with click.progressbar(length=length, label="answering", file=sys.stderr) as bar:
            rows = measure(model, answers, said[:num_learned], guesses, bar.update)
    result = {
        "benchmark": name,
        "what": what,
        "rows": rows,
        "answers": num_answers,
        "tokens": sum(len(answer.tokens) for answer in answers),
        "learned": num_learned,
        "threads": threads,
    }
    publish(name, result, to_table(result))


if __name__ == "__main__":
    main()
