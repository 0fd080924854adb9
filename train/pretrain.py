"""Teaches the vision tower to see, by labels for every visual token.

`python -m train.pretrain --output runs/pretrain`: see `PretrainConfig`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch

from la_trt.lookworld import WorldConfig
from la_trt.model import VisionTower
from train.checkpointing import check_same_run, load_state, save_state
from train.command import run
from train.dense import DenseHeads, DenseScore, dense_loss, dense_score
from train.options import config_options
from train.parallel import join, wait_for_all
from train.pixels import patchify
from train.precision import MasterWeights, fast_attention, fast_dtype, keep_heap
from train.progress import RunLog
from train.ranges import SEED, SHARE, at_least, check
from train.scenes import SceneBatches, fixed_scenes, loader
from train.schedule import warmup_stable_decay
from train.shape import tiny_vision


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Dense supervision. `digit_frac` draws more digits than questions need, to learn to read."""

    seed: int = 0
    steps: int = 1000
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 50
    decay_frac: float = 0.3
    weight_decay: float = 0.02
    muon: bool = True
    digit_frac: float = 0.85
    large_frac: float = 0.5
    save_every: int = 200
    num_validation: int = 128

    def __post_init__(self) -> None:
        check(
            self,
            seed=SEED,
            steps=at_least(1),
            batch=at_least(1),
            lr=at_least(0),
            decay_frac=SHARE,
            weight_decay=at_least(0),
            digit_frac=SHARE,
            large_frac=SHARE,
            save_every=at_least(1),
        )


def make_tower(seed: int) -> tuple[VisionTower, DenseHeads]:
    """A fresh tower and its heads, weights drawn from the seed."""
    torch.manual_seed(seed)
    config = tiny_vision()
    tower = VisionTower(config)
    for name, parameter in tower.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return tower, DenseHeads(config.out_hidden_size)


def see(tower: VisionTower, images: np.ndarray) -> torch.Tensor:
    """Visual embeddings (N * M, E) of pictures (N, H, W, 3) of one size."""
    config = tower.config
    num, height, width, _ = images.shape
    grid = torch.tensor([[1, height // config.patch_size, width // config.patch_size]] * num)
    dtype = tower.patch_embed.proj.weight.dtype
    out: torch.Tensor = tower(patchify(images, config).to(dtype), grid)
    return out


@torch.no_grad()
def validate(
    tower: VisionTower, heads: DenseHeads, images: np.ndarray, targets: np.ndarray
) -> DenseScore:
    """The score on fixed pictures."""
    logits = [heads(see(tower, images[i : i + 32])) for i in range(0, len(images), 32)]
    joined = [torch.cat(parts) for parts in zip(*logits, strict=True)]
    return dense_score(joined, torch.from_numpy(targets))


def pretrain(config: PretrainConfig, output: Path) -> Path:
    """The file with the trained tower and heads; goes on where an earlier run stopped.

    Raises UsageError E_STATE where that run was begun with another seed or optimizer.
    Under torchrun every process takes its share of each batch.
    """
    rank, parts = join()
    world = replace(WorldConfig(), digit_frac=config.digit_frac, large_frac=config.large_frac)
    fixed = fixed_scenes("validation", config.num_validation, WorldConfig())
    tower, heads = make_tower(config.seed)
    weights = MasterWeights(
        {"visual": tower, "heads": heads},
        weight_decay=config.weight_decay,
        muon=config.muon,
        dtype=fast_dtype(),
    )
    path, first = output / "pretrain.pt", 0
    state = load_state(path)
    kept = {"seed": config.seed, "muon": config.muon}
    if state is not None:
        check_same_run(path, state.get("kept", kept), kept)  # an older state does not say
        weights.load_state_dict(state["weights"])
        first = state["step"]
    output.mkdir(parents=True, exist_ok=True)
    (output / "pretrain_config.json").write_text(json.dumps(asdict(config), indent=1))
    batches = loader(
        SceneBatches(
            seed=config.seed, batch=config.batch, world=world, first=first, part=rank, parts=parts
        )
    )
    seen = 0.0
    name = "pretrain" if rank == 0 else f"pretrain-{rank}"
    with RunLog(output, name, total=config.steps, done=first) as log, fast_attention():
        for step in range(first, config.steps):
            batch = next(batches)
            loss = dense_loss(heads(see(tower, batch["images"].numpy())), batch["targets"])
            loss.backward()
            factor = warmup_stable_decay(
                step, total=config.steps, warmup=config.warmup, decay_frac=config.decay_frac
            )
            weights.step(config.lr * factor)
            seen = (
                float(loss.detach()) if step == first else 0.95 * seen + 0.05 * float(loss.detach())
            )
            log.advance(step + 1, f"loss {seen:.3f}")
            done = step + 1 == config.steps
            if rank == 0 and ((step + 1) % config.save_every == 0 or done):
                score = validate(tower, heads, *fixed)
                log.write({"step": step + 1, "loss": round(seen, 4), **asdict(score)})
                saved = {"weights": weights.state_dict(), "step": step + 1, "kept": kept}
                save_state(path, saved)
    wait_for_all()
    return path


@click.command()
@config_options(PretrainConfig)
@click.option("--output", type=click.Path(path_type=Path), required=True,
              help="Directory of state, metrics and, in the end, what was trained.")  # fmt: skip
def main(output: Path, **values: object) -> None:
    """Train the vision tower on labels for visual tokens."""
    keep_heap()
    config = PretrainConfig(**values)  # type: ignore[arg-type]
    click.echo(json.dumps(asdict(config)), err=True)
    pretrain(config, output)


if __name__ == "__main__":
    sys.exit(run(main, goes_on="its last save"))
