"""Makes the small checkpoint from nothing: tokenizer, pretraining, cold-start SFT, export.

`python -m train.tiny --seed 0 --output DIR`, or on two cores, faster,
`OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 -m train.tiny ...`
(docs/LOG.md has the time and the scores).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

from la_trt.files.atomic import atomic_directory
from train.coldstart import ColdStartConfig, Reattention, sft
from train.command import run
from train.parallel import join
from train.precision import keep_heap
from train.pretrain import PretrainConfig, pretrain
from train.shape import NUM_LAYERS

Recipe = tuple[PretrainConfig, tuple[ColdStartConfig, ...]]

_ALL = ColdStartConfig(lr=1.5e-3, scenes=12, decay_frac=0.0, error_rate=0.0, num_validation=0)
_TEXT = replace(_ALL, steps=1000, short_steps=1000, questions=4, pictures=False, caption_weight=0.0)
_SEE = replace(
    _ALL, steps=2000, short_steps=2000, questions=4, train_tower=False, caption_weight=1.0
)
_LOOK_AGAIN = replace(
    _ALL,
    steps=2800,
    short_steps=2000,
    questions=3,
    caption_weight=0.5,
    error_rate=0.25,
    caption_error_frac=0.5,
    decay_frac=0.2,
)
# Once more without reflections, then with them, the rate falling from the first step on.
_SEE_MORE = replace(_SEE, steps=3800, short_steps=3800, caption_weight=0.5, hard=True)
_FINISH = replace(_LOOK_AGAIN, steps=4500, short_steps=3800, decay_frac=0.16, hard=True)
# Each stage goes on where the one before stopped; `steps` counts from the first. The decoder
# learns to reason from written captions, then to read them off the picture, then to look again.
RECIPES: dict[str, Recipe] = {
    "shipped": (
        PretrainConfig(steps=2000, save_every=60),
        (_TEXT, _SEE, _LOOK_AGAIN, _SEE_MORE, _FINISH),
    ),
    # What the experiments start from. Conclusions come in with the last stage.
    "start": (
        PretrainConfig(steps=900, save_every=60),
        (
            replace(_TEXT, conclude=False),
            replace(_SEE, steps=1750, short_steps=1750, conclude=False),
            replace(
                _LOOK_AGAIN,
                steps=2400,
                short_steps=1750,
                caption_error_frac=0.2,
                conclude=False,
            ),
        ),
    ),
}


def recipe(
    name: str,
    seed: int,
    scale: float,
    reattention: Reattention = "copy",
    layers: int = NUM_LAYERS,
) -> Recipe:
    """The configs of all stages; `scale` multiplies their steps (for a trial)."""
    first, stages = RECIPES[name]

    def steps(num: int) -> int:
        return max(2, round(num * scale))

    return (
        replace(first, seed=seed, steps=steps(first.steps)),
        tuple(
            replace(
                s,
                seed=seed,
                reattention=reattention,
                layers=layers,
                steps=steps(s.steps),
                short_steps=round(s.short_steps * scale),
            )
            for s in stages
        ),
    )


@click.command()
@click.option("--seed", default=0, show_default=True, help="The same seed, the same run.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="the checkpoint")
@click.option("--runs", type=click.Path(path_type=Path), help="state and metrics  [OUTPUT-runs]")
@click.option("--recipe", "name", type=click.Choice(list(RECIPES)), default="shipped",
              show_default=True, help="start: that of the experiments' cold start")  # fmt: skip
@click.option("--reattention", type=click.Choice(["copy", "none"]), default="copy",
              show_default=True, help="put in before a reflection, in the last stage")  # fmt: skip
@click.option("--layers", type=click.IntRange(min=1), default=NUM_LAYERS, show_default=True,
              help="of the decoder")  # fmt: skip
@click.option("--scale", default=1.0, show_default=True, help="of the numbers of steps")
def main(
    seed: int,
    output: Path,
    runs: Path | None,
    name: str,
    reattention: Reattention,
    layers: int,
    scale: float,
) -> None:
    """Train the small LookWorld checkpoint; goes on where an earlier run stopped."""
    keep_heap()
    runs = runs or output.with_name(output.name + "-runs")
    first, stages = recipe(name, seed, scale, reattention, layers)
    started = time.monotonic()
    tower = pretrain(first, runs / "pretrain")
    pretrained = time.monotonic()
    for stage in stages:
        checkpoint = sft(stage, runs / "sft", tower)
    if join()[0] == 0:
        with atomic_directory(output, marker="model.safetensors") as staging:
            shutil.copytree(checkpoint, staging, dirs_exist_ok=True)
    minutes = {
        "pretrain": round((pretrained - started) / 60, 1),
        "sft": round((time.monotonic() - pretrained) / 60, 1),
    }
    click.echo(json.dumps({"checkpoint": str(output), "minutes": minutes}))


if __name__ == "__main__":
    sys.exit(run(main, goes_on="its last save"))
