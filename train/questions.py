"""Batches of pictures with several questions each, drawn endlessly in a worker process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import IterableDataset

from la_trt.lookworld import (
    CELL_PX,
    FAMILIES,
    SPLIT_SEEDS,
    Question,
    Scene,
    WorldConfig,
    ask,
    generate_scene,
    respond,
)
from la_trt.processor.tokenizer import Vocabulary
from train.scenes import FIRST_SCENE, PICTURE_SIZES, draw
from train.sequences import Reattention, Tokens, branch_tokens, pad_right, prefix_tokens

SORTED_BATCHES = 8  # drawn together and sorted by length, to pad little


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A picture, its dense targets (M, 6), and one branch a question."""

    image: np.ndarray
    dense: np.ndarray
    branches: list[Tokens]

    @property
    def length(self) -> int:
        return max(map(len, self.branches))


class QuestionBatches(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of `scenes` pictures of one size with `questions` questions each.

    `images` (B, H, W, 3) uint8; `dense` (B * M, 6); `input_ids`, `visual_row`, `targets`,
    `caption` (B, S) and `position_ids` (3, B, S) of rows `[prefix | branches]`; `prefix` () its
    length. Visual rows count within the batch. Questions whose answer the scene cannot give are
    drawn again. Without `pictures` there are neither images nor visual tokens, and text stands at
    the positions that it would have after them. `stream`: a number for each of several processes,
    that they differ.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        seed: int,
        scenes: int,
        questions: int,
        world: WorldConfig,
        reattention: Reattention,
        reflect: bool,
        conclude: bool = True,
        pictures: bool = True,
        first: int = 0,
        stream: int = 0,
    ) -> None:
        self.vocabulary, self.seed, self.world = vocabulary, seed, world
        self.scenes, self.questions = scenes, questions
        self.reattention: Reattention = reattention if pictures else "none"
        self.pictures = pictures
        self.reflect, self.conclude = reflect, conclude
        self.first, self.stream = first, stream

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        torch.set_num_threads(1)
        group = SORTED_BATCHES + 1
        number = self.first // group
        skip = self.first % group
        while True:
            yield from self._group(number)[skip:]
            number, skip = number + 1, 0

    def _group(self, number: int) -> list[dict[str, torch.Tensor]]:
        """Batches of the default size, sorted by length then shuffled, and one of another."""
        rng = np.random.default_rng((self.seed, number, 5, self.stream))
        other = PICTURE_SIZES[1 + number % (len(PICTURE_SIZES) - 1)]
        drawn = [self._draw(rng, PICTURE_SIZES[0]) for _ in range(SORTED_BATCHES * self.scenes)]
        drawn.sort(key=lambda d: d.length)
        parts = [drawn[i : i + self.scenes] for i in range(0, len(drawn), self.scenes)]
        parts.append([self._draw(rng, other) for _ in range(self.scenes)])
        # The same order in every process, so that their batches are about equally long.
        order = np.random.default_rng((self.seed, number, 6)).permutation(len(parts))
        return [self._batch(parts[int(i)]) for i in order]

    def _draw(self, rng: np.random.Generator, size: tuple[int, int]) -> Drawn:
        world = replace(self.world, sizes=(size,))
        index = FIRST_SCENE + int(rng.integers(1 << 40))
        while True:
            scene = generate_scene(SPLIT_SEEDS["train"], index, world)
            asked = self._ask(scene, rng, world)
            if asked is not None:
                break
            index += 1
        image, dense = (
            draw(scene)
            if self.pictures
            else (np.zeros((scene.height, scene.width, 0), np.uint8), np.zeros((0, 6), np.int64))
        )
        rows, cols = scene.height // CELL_PX, scene.width // CELL_PX
        _, start = prefix_tokens(self.vocabulary, rows, cols)
        branches = []
        for question in asked:
            response = respond(scene, question, rng, world)
            branches.append(
                branch_tokens(
                    self.vocabulary,
                    question.text,
                    response.text,
                    response.spans,
                    rows=rows,
                    cols=cols,
                    start=start,
                    reattention=self.reattention,
                    reflect=self.reflect,
                    conclude=self.conclude,
                )
            )
        return Drawn(image=image, dense=dense, branches=branches)

    def _ask(
        self, scene: Scene, rng: np.random.Generator, world: WorldConfig
    ) -> list[Question] | None:
        """Questions of different families, or None where the scene allows too few."""
        weights = np.array(world.family_weights)
        order = rng.choice(
            len(FAMILIES), int((weights > 0).sum()), replace=False, p=weights / weights.sum()
        )
        found = []
        for family in order:
            question = ask(scene, rng, FAMILIES[int(family)])
            if question is not None:
                found.append(question)
            if len(found) == self.questions:
                return found
        return None

    def _batch(self, drawn: list[Drawn]) -> dict[str, torch.Tensor]:
        height, width, _ = drawn[0].image.shape
        rows, cols = height // CELL_PX, width // CELL_PX
        prefix, _ = prefix_tokens(self.vocabulary, rows, cols)
        if not self.pictures:
            prefix = prefix.text()
        longest = max(d.length for d in drawn)
        pad = self.vocabulary.controls["<|endoftext|>"]
        lines = []
        for b, d in enumerate(drawn):
            own = pad_right(d.branches, longest, pad)
            shift = b * rows * cols
            lines.append(
                Tokens(
                    input_ids=np.concatenate([prefix.input_ids, own.input_ids]),
                    visual_row=_shifted(np.concatenate([prefix.visual_row, own.visual_row]), shift),
                    position_ids=np.concatenate([prefix.position_ids, own.position_ids], axis=1),
                    targets=np.concatenate([prefix.targets, own.targets]),
                    caption=np.concatenate([prefix.caption, own.caption]),
                )
            )
        seen = {
            "images": torch.from_numpy(np.stack([d.image for d in drawn])),
            "dense": torch.from_numpy(np.concatenate([d.dense for d in drawn])),
        }
        return (seen if self.pictures else {}) | {
            "input_ids": torch.from_numpy(np.stack([t.input_ids for t in lines])),
            "visual_row": torch.from_numpy(np.stack([t.visual_row for t in lines])),
            "targets": torch.from_numpy(np.stack([t.targets for t in lines])),
            "caption": torch.from_numpy(np.stack([t.caption for t in lines])),
            "position_ids": torch.from_numpy(np.stack([t.position_ids for t in lines], axis=1)),
            "prefix": torch.tensor(len(prefix)),
        }


def _shifted(rows: np.ndarray, shift: int) -> np.ndarray:
    return np.where(rows >= 0, rows + shift, -1)
