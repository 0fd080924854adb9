"""Pictures with dense labels, drawn endlessly in a worker process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from la_trt.lookworld import CELL_PX, SPLIT_SEEDS, Scene, WorldConfig, generate_scene, render
from train.dense import dense_targets

Batch = dict[str, torch.Tensor]

# (width, height); a batch has one size. The first is the world's default.
PICTURE_SIZES = ((224, 224), (280, 168), (168, 280), (252, 196), (196, 252))
DEFAULT_SIZE_FRAC = 0.85
# Scenes of `sample` take the low indices of a split's seed; these stand far above them.
FIRST_SCENE = 1 << 34


def batch_size_px(seed: int, step: int, default_frac: float = DEFAULT_SIZE_FRAC) -> tuple[int, int]:
    """(width, height) of the pictures of a batch, mostly the default."""
    rng = np.random.default_rng((seed, step, 77))
    if rng.random() < default_frac:
        return PICTURE_SIZES[0]
    return PICTURE_SIZES[1 + int(rng.integers(len(PICTURE_SIZES) - 1))]


def draw(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The picture (H, W, 3) uint8 and its dense targets (M, 6)."""
    targets = dense_targets(scene, scene.height // CELL_PX, scene.width // CELL_PX)
    return np.asarray(render(scene)), targets


class SceneBatches(IterableDataset[Batch]):
    """Batches of `images` (N, H, W, 3) uint8 and `targets` (N * M, 6), from step `first` on.

    `part` of `parts`: the share of every batch that falls to one of several processes.
    """

    def __init__(
        self,
        *,
        seed: int,
        batch: int,
        world: WorldConfig,
        first: int = 0,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        self.seed, self.batch, self.world, self.first = seed, batch, world, first
        self.share = range(part * batch // parts, (part + 1) * batch // parts)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        torch.set_num_threads(1)
        step = self.first
        while True:
            world = replace(self.world, sizes=(batch_size_px(self.seed, step),))
            base = FIRST_SCENE + (self.seed << 28) + step * self.batch
            scenes = [generate_scene(SPLIT_SEEDS["train"], base + i, world) for i in self.share]
            pictures, targets = zip(*map(draw, scenes), strict=True)
            yield {
                "images": torch.from_numpy(np.stack(pictures)),
                "targets": torch.from_numpy(np.concatenate(targets)),
            }
            step += 1


def loader(
    dataset: IterableDataset[Batch], *, workers: int = 1
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the dataset in order, drawn ahead by at most one worker process.

    The worker is not forked from this process: after an earlier stage that would hold on to
    gigabytes, all the pages which this process then writes anew. It is forked from one that has
    imported what all workers need, once for all of them.
    """
    assert workers in (0, 1), "more workers would repeat the batches"
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["train.questions"])
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=6 if workers else None,
            multiprocessing_context=processes if workers else None,
        )
    )


def fixed_scenes(split: str, num: int, world: WorldConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, H, W, 3) and targets (N * M, 6) of a split, always the same."""
    seed = SPLIT_SEEDS[split]
    drawn = [draw(generate_scene(seed, FIRST_SCENE + i, world)) for i in range(num)]
    pictures, targets = zip(*drawn, strict=True)
    return np.stack(pictures), np.concatenate(targets)
