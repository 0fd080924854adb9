"""Cold-start SFT: the whole model learns to answer, and to reflect after it looked again.

`python -m train.coldstart --tower runs/pretrain/pretrain.pt --output runs/sft`: see
`ColdStartConfig`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from la_trt.lookworld import FAMILIES, WorldConfig
from la_trt.model import QwenVL
from la_trt.processor.tokenizer import Vocabulary
from train.branches import BranchAttention
from train.checkpointing import check_same_run, load_state, save_state
from train.command import run
from train.dense import DenseHeads, dense_loss
from train.export import export
from train.options import config_options
from train.parallel import join, wait_for_all
from train.precision import MasterWeights, fast_attention, fast_dtype, keep_heap
from train.pretrain import see
from train.progress import RunLog
from train.questions import QuestionBatches
from train.ranges import DECAY, SEED, SHARE, at_least, check
from train.scenes import loader
from train.schedule import warmup_stable_decay
from train.sequences import IGNORE
from train.shape import NUM_LAYERS, tiny_model
from train.tokenizer import padded_size, write_tokenizer
from train.validate import quick_scores

Reattention = Literal["none", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStartConfig:
    """Cold-start SFT. In its first `short_steps` steps sequences leave their reflection out, which
    makes them half as long; without `conclude` the conclusion too.

    `layers`: of the decoder. `dense`: weight of the labels for visual tokens; `caption_weight`:
    of a caption's tokens. `reattention`: none or copy (embed).
    `error_rate`: of reasonings that err until the reflection, `caption_error_frac` of these from
    the caption on. `hard`: the families that take longest to learn are asked most. Without
    `train_tower` the vision tower stays as it is. Without `pictures` the decoder alone learns to
    reason from captions that are given: no image, no copies, and captions should weigh 0.
    """

    seed: int = 0
    layers: int = NUM_LAYERS
    steps: int = 2400
    short_steps: int = 1200
    conclude: bool = True
    scenes: int = 16
    questions: int = 2
    lr: float = 1.5e-3
    warmup: int = 60
    decay_frac: float = 0.35
    weight_decay: float = 0.02
    dense: float = 0.3
    caption_weight: float = 0.3
    reasoning_length: int = 3
    error_rate: float = 0.25
    caption_error_frac: float = 0.2
    hard: bool = False
    train_tower: bool = True
    pictures: bool = True
    reattention: Reattention = "copy"
    average_decay: float = 0.99
    save_every: int = 200
    num_validation: int = 100

    def __post_init__(self) -> None:
        check(
            self,
            seed=SEED,
            layers=at_least(1),
            steps=at_least(1),
            scenes=at_least(1),
            questions=at_least(1),
            lr=at_least(0),
            decay_frac=SHARE,
            weight_decay=at_least(0),
            average_decay=DECAY,
            save_every=at_least(1),
        )


FAMILY_WEIGHTS = {
    "count": 1.2,
    "exist": 1.2,
    "relation": 1.5,
    "compare": 1.4,
    "sum": 2.0,
    "describe": 1.6,
}
HARD_WEIGHTS = {"sum": 4.0, "describe": 5.0, "colour": 1.5, "shape": 1.5, "digit": 1.5}


def training_world(
    reasoning_length: int = 3,
    error_rate: float = 0.25,
    caption_error_frac: float = 0.2,
    hard: bool = False,
) -> WorldConfig:
    """The default world, with some families asked more often and such responses."""
    asked = HARD_WEIGHTS if hard else FAMILY_WEIGHTS
    weights = tuple(asked.get(family, 1.0) for family in FAMILIES)
    return replace(
        WorldConfig(),
        family_weights=weights,
        reasoning_length=reasoning_length,
        error_rate=error_rate,
        caption_error_frac=caption_error_frac,
    )


def make_model(
    vocabulary: Vocabulary, seed: int, tower: Path | None, num_layers: int = NUM_LAYERS
) -> tuple[QwenVL, DenseHeads]:
    """A fresh model and dense heads; the tower and the heads from a file of `pretrain`."""
    config = tiny_model(padded_size(vocabulary), vocabulary.controls, num_layers)
    model = QwenVL(config)
    torch.manual_seed(seed)
    model.initialize(seed)
    depth = config.text.num_hidden_layers
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(0.0, parameter.shape[1] ** -0.5 / (2 * depth) ** 0.5)
            elif parameter.dim() == 2 and "embed" not in name:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    heads = DenseHeads(config.text.hidden_size)
    if tower is not None:
        masters = (load_state(tower) or {})["weights"]["average"]
        for module, prefix in ((model.visual, "visual."), (heads, "heads.")):
            own = {n[len(prefix) :]: v for n, v in masters.items() if n.startswith(prefix)}
            module.load_state_dict(own)
    return model, heads


def batch_loss(
    model: QwenVL,
    heads: DenseHeads | None,
    batch: dict[str, Tensor],
    *,
    dense: float,
    caption_weight: float = 1.0,
    train_tower: bool = True,
) -> tuple[Tensor, Tensor]:
    """The loss to minimise, and the mean cross-entropy in nats of the tokens outside captions."""
    visual: Tensor | None = None
    if "images" in batch:
        with torch.set_grad_enabled(train_tower and torch.is_grad_enabled()):
            visual = see(model.visual, batch["images"].numpy())
    embeds = model.embed(batch["input_ids"], batch["visual_row"], visual)
    prefix = int(batch["prefix"])
    num = int(batch["num_branches"])
    attention = BranchAttention(prefix=prefix, num_branches=num)
    hidden = model.decoder(embeds, batch["position_ids"], attention=attention).hidden_BSE
    learned = batch["targets"] != IGNORE
    logits = model.logits(hidden[learned]).float()
    losses = F.cross_entropy(logits, batch["targets"][learned], reduction="none")
    caption = batch["caption"][learned].float()
    weight = 1 + (caption_weight - 1) * caption
    text = (losses * weight).sum() / weight.sum()
    beyond = (losses.detach() * (1 - caption)).sum() / (1 - caption).sum()
    if heads is None or dense == 0 or not train_tower or visual is None:
        return text, beyond
    return text + dense * dense_loss(heads(visual), batch["dense"]), beyond


class Trainer:
    """The state of a run: model, weights, step; saved and restored as one file."""

    def __init__(self, config: ColdStartConfig, output: Path, tower: Path | None) -> None:
        self.config, self.output = config, output
        self.rank, self.world = join()
        own = "tokenizer" if self.rank == 0 else f"tokenizer-{self.rank}"
        self.vocabulary = write_tokenizer(output / own)
        self.model, self.heads = make_model(self.vocabulary, config.seed, tower, config.layers)
        self.weights = MasterWeights(
            {"model": self.model, "heads": self.heads},
            weight_decay=config.weight_decay,
            dtype=fast_dtype(),
        )
        self.step = 0
        self.kept = {"seed": config.seed, "layers": config.layers}
        state = load_state(self.path)
        if state is not None:
            before = state.get("kept", self.kept)  # an older state does not say
            check_same_run(self.path, before, self.kept)
            self.weights.load_state_dict(state["weights"])
            self.step = state["step"]
        if not config.train_tower or not config.pictures:
            self.weights.forget_momentum("model.visual.")
            self.weights.forget_momentum("heads.")

    @property
    def path(self) -> Path:
        """The file that a later run goes on from."""
        return self.output / "sft.pt"

    def batches(self) -> Any:
        """Batches from the present step on, of the present phase."""
        config = self.config
        world = training_world(
            config.reasoning_length, config.error_rate, config.caption_error_frac, config.hard
        )
        return loader(
            QuestionBatches(
                self.vocabulary,
                seed=config.seed,
                scenes=config.scenes // self.world,
                questions=config.questions,
                world=world,
                reattention="copy" if config.reattention == "copy" else "none",
                pictures=config.pictures,
                reflect=self.step >= config.short_steps,
                conclude=config.conclude,
                first=self.step,
                stream=self.rank,
            )
        )

    def train_step(self, batch: dict[str, Tensor]) -> tuple[float, float]:
        """Cross-entropy in nats and the gradient's norm of one step."""
        config = self.config
        batch["num_branches"] = torch.tensor(config.questions)
        loss, text = batch_loss(
            self.model,
            self.heads,
            batch,
            dense=config.dense,
            caption_weight=config.caption_weight,
            train_tower=config.train_tower,
        )
        loss.backward()
        factor = warmup_stable_decay(
            self.step, total=config.steps, warmup=config.warmup, decay_frac=config.decay_frac
        )
        norm = self.weights.step(config.lr * factor, average_decay=config.average_decay)
        self.step += 1
        return float(text), norm

    def tensors(self) -> dict[str, Tensor]:
        """The averaged parameters by their released names."""
        prefix = "model."
        return {
            name[len(prefix) :]: value
            for name, value in self.weights.average.items()
            if name.startswith(prefix)
        }

    def save(self) -> None:
        """Nothing; writes the exported checkpoint, then the state beside it.

        In this order: a run that is killed between the two goes on from the state before, and
        exports again.
        """
        companions, directory = self.output / "tokenizer", self.output / "checkpoint"
        export(self.tensors(), self.model.config, directory, companions=companions)
        state = {"weights": self.weights.state_dict(), "step": self.step, "kept": self.kept}
        save_state(self.path, state)


def sft(config: ColdStartConfig, output: Path, tower: Path | None) -> Path:
    """The exported checkpoint's directory; goes on where an earlier run stopped.

    Raises UsageError E_STATE where that run was begun with another seed or depth. The other
    settings may differ: a recipe's stages go on from one another.
    """
    trainer = Trainer(config, output, tower)
    (output / "sft_config.json").write_text(json.dumps(asdict(config), indent=1))
    batches, phase = trainer.batches(), trainer.step >= config.short_steps
    smooth: float | None = None
    name = "sft" if trainer.rank == 0 else f"sft-{trainer.rank}"
    with RunLog(output, name, total=config.steps, done=trainer.step) as log, fast_attention():
        while trainer.step < config.steps:
            if phase != (trainer.step >= config.short_steps):
                batches, phase = trainer.batches(), not phase
            text, norm = trainer.train_step(next(batches))
            smooth = text if smooth is None else 0.95 * smooth + 0.05 * text
            if trainer.rank:
                continue
            log.advance(trainer.step, f"loss {smooth:.3f}")
            if trainer.step % 50 == 0:
                log.write({"step": trainer.step, "text": round(smooth, 4), "norm": round(norm, 2)})
            if trainer.step % config.save_every == 0 or trainer.step == config.steps:
                trainer.save()
                if config.num_validation and trainer.step > config.short_steps:
                    scores = quick_scores(output / "checkpoint", config.num_validation)
                    log.write({"step": trainer.step, **scores})
    wait_for_all()
    return output / "checkpoint"


@click.command()
@config_options(ColdStartConfig)
@click.option("--tower", type=click.Path(exists=True, path_type=Path), help="from train.pretrain")
@click.option("--output", type=click.Path(path_type=Path), required=True,
              help="Directory of state, metrics and, in the end, what was trained.")  # fmt: skip
def main(output: Path, tower: Path | None, **values: Any) -> None:
    """Train the whole model on LookWorld's responses."""
    keep_heap()
    config = ColdStartConfig(**values)
    click.echo(json.dumps(asdict(config)), err=True)
    sft(config, output, tower)


if __name__ == "__main__":
    sys.exit(run(main, goes_on="its last save"))
