"""BRPO on two gloo processes; leaves metrics and states.

`python -m tests.train.two_brpo CHECKPOINT DIRECTORY`: in DIRECTORY/live and DIRECTORY/spread
`whole` runs to the end at once, `again` is begun by two processes that stop after one step, and
goes on from there; each process that reads a state there leaves `read-RANK`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # a first step imports it; here it is done once for all children

import train.rollout
from tests.train.test_brpo import TRIAL, judge
from tests.train.two_processes import go_on, together
from train.brpo import Trainer, brpo

CONFIG = replace(
    TRIAL,
    run=replace(TRIAL.run, steps=2, save_every=2),
    rollout=replace(TRIAL.rollout, questions=1),
)


def run(ckpt: Path, output: Path, *, shard: bool, stop_after: int = 0) -> None:
    train.rollout.reward_answer = judge
    load = torch.load

    def noted(file: Any, **options: Any) -> Any:
        if isinstance(file, Path):  # what processes send one another is no path
            (output / f"read-{os.environ['RANK']}").touch()
        return load(file, **options)

    torch.load = noted
    trainer = Trainer(replace(CONFIG, optim=replace(CONFIG.optim, shard=shard)), ckpt, output)
    go_on(trainer, brpo, stop_after)


def both(ckpt: Path, directory: Path, *, shard: bool) -> None:
    """Nothing; `whole` and `again` are in the directory."""
    together(lambda: run(ckpt, directory / "whole", shard=shard))
    together(lambda: run(ckpt, directory / "again", shard=shard, stop_after=1))
    together(lambda: run(ckpt, directory / "again", shard=shard))


def main() -> None:
    torch.set_num_threads(1)
    ckpt, directory = map(Path, sys.argv[1:])
    both(ckpt, directory / "live", shard=False)
    both(ckpt, directory / "spread", shard=True)


if __name__ == "__main__":
    main()
