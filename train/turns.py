"""Turns to learn from, one after another, from a position that a run can go on from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

import numpy as np

from la_trt.errors import InputError
from la_trt.lookworld import WorldConfig, sample
from la_trt.processor.prompt import Processor
from la_trt.processor.types import Prompt
from la_trt.reattention.policy import Policy
from la_trt.reattention.select import num_selected
from la_trt.tags import REFLECTION_OPEN
from train.data import encode_response, read_examples
from train.reinject import Turn, injection_steps
from train.sequences import response_targets
from train.tasks import HALF, first_sample

END = "<|im_end|>"
_MOST_TOO_LONG = 1000  # responses in a row, after which none is thought to fit


class Turns(Protocol):
    """An endless source of one process's share.

    `position`: where its next turn stands; `skipped`: how many were left out, by reason;
    `fingerprint`: a position means something only for the same one.
    """

    @property
    def position(self) -> int: ...

    @property
    def skipped(self) -> Counter[str]: ...

    @property
    def fingerprint(self) -> str: ...

    def take(self) -> Turn: ...


def turn_length(turn: Turn, policy: Policy, reflection_id: int | None) -> int:
    """KV positions that the turn takes under the policy, copies included."""
    copies = num_selected(policy.select, turn.prompt.num_visual)
    steps = injection_steps(turn, policy, reflection_id)
    return len(turn.prompt.input_ids) + len(turn.response_ids) - 1 + copies * len(steps)


class LookWorldTurns:
    """Responses of LookWorld's train split; of R processes each takes every R-th.

    Those longer than `max_length` tokens under the policy are counted and left out.
    What a response says wrongly before its reflection carries no loss.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        seed: int,
        world: WorldConfig,
        policy: Policy,
        max_length: int,
        share: tuple[int, int] = (0, 1),
        position: int = 0,
    ) -> None:
        self.processor, self.world, self.share = processor, world, share
        self.policy, self.max_length = policy, max_length
        self._first, self._position = first_sample(seed) + HALF, position or share[0]
        self.skipped: Counter[str] = Counter()
        self.fingerprint = f"lookworld {world}"
        self._end = end_token(processor)
        self._reflection = processor.vocabulary.token_id(REFLECTION_OPEN)

    @property
    def position(self) -> int:
        return self._position

    def take(self) -> Turn:
        """The next one of this process's share that fits. Raises InputError where none does."""
        for _ in range(_MOST_TOO_LONG):
            turn = self._next()
            if turn_length(turn, self.policy, self._reflection) <= self.max_length:
                return turn
            self.skipped["E_CONTEXT_LENGTH"] += 1
        raise InputError(
            f"lookworld: none of {_MOST_TOO_LONG} responses fits {self.max_length} tokens\n"
            "raise max_length, or lower max_pixels",
            name="E_DATA",
        )

    def _next(self) -> Turn:
        drawn = sample("train", self._first + self._position % HALF, self.world)
        self._position += self.share[1]
        assert drawn.image is not None, "a sample without its picture"
        said = drawn.response
        ids, learn = response_targets(self.processor.vocabulary, said.text, said.spans)
        return Turn(
            prompt=self.processor(drawn.question.text, [drawn.image]),
            response_ids=np.array([*ids, self._end], np.int64),
            learn=np.append(learn, True),
        )


class FileTurns:
    """Responses of a JSONL file (`train.data`), shuffled anew in every epoch, without end.

    Of R processes each takes every R-th row; where a row is bad or longer than `max_length`
    tokens under the policy it is counted, and the row after it stands in.
    """

    def __init__(
        self,
        processor: Processor,
        path: Path,
        images: Path | None,
        *,
        seed: int,
        policy: Policy,
        max_length: int,
        share: tuple[int, int] = (0, 1),
        position: int = 0,
    ) -> None:
        self.processor, self.policy, self.max_length = processor, policy, max_length
        self.share = share
        self._reader = read_examples(
            path, images, seed=seed, start=position or share[0], epochs=None, require=("response",)
        )
        self._reader.refuse_empty()
        self._refused: Counter[str] = Counter()
        self._end = end_token(processor)
        self._reflection = processor.vocabulary.token_id(REFLECTION_OPEN)

    @property
    def position(self) -> int:
        return self._reader.position

    @property
    def num_rows(self) -> int:
        return self._reader.num_rows

    @property
    def skipped(self) -> Counter[str]:
        return self._reader.skipped + self._refused

    @property
    def fingerprint(self) -> str:
        return self._reader.fingerprint

    def take(self) -> Turn:
        """The next one of this process's share. Raises InputError where no row can be used."""
        for _ in range(2 * self.num_rows):
            example = next(self._reader)
            try:
                assert example.response is not None, "a row without a response got through"
                turn = self._turn(
                    self.processor(example.question, example.images, max_length=self.max_length),
                    example.response,
                )
            except InputError as error:
                self._refused[error.name] += 1
                continue
            rank, num = self.share
            behind = (rank - self._reader.position) % num
            self._reader.position += behind
            return turn
        raise InputError(
            f"{self._reader.path}: no row fits {self.max_length} tokens\n"
            "raise max_length, or lower max_pixels",
            name="E_DATA",
        )

    def _turn(self, prompt: Prompt, response: str) -> Turn:
        ids = [*encode_response(self.processor.vocabulary, response), self._end]
        turn = Turn(prompt=prompt, response_ids=np.array(ids, np.int64))
        length = turn_length(turn, self.policy, self._reflection)
        if length > self.max_length:
            raise InputError(
                f"{length} tokens, more than {self.max_length}", name="E_CONTEXT_LENGTH"
            )
        return turn


def end_token(processor: Processor) -> int:
    """The id that ends an answer. Raises InputError where the vocabulary has none."""
    found = processor.vocabulary.controls.get(END)
    if found is None:
        raise InputError(
            f"tokenizer.json: no added token {END}\ngive a Qwen2.5-VL checkpoint",
            name="E_TOKENIZER",
        )
    return found
