"""SFT with re-attention active: the model learns to answer with the copies that it will get.

`python -m train.sft --ckpt DIR --output DIR --reattention copy --inject embed`. Run it again to
go on where it stopped; under `torchrun` the processes share model and batch (FSDP2).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from la_trt.errors import UsageError
from la_trt.files.atomic import atomic_file
from la_trt.lookworld import WorldConfig
from la_trt.model import MassQuery, QwenVL
from la_trt.model.weights import load_model
from la_trt.processor.prompt import Processor
from la_trt.tags import ALL_TAGS, REFLECTION_OPEN
from train.added_tokens import missing_tags, start_rows, write_with_tags
from train.batch import Batch, collate, pieces
from train.board import Board
from train.checkpointing import (
    check_not_beyond,
    check_same_run,
    fingerprint,
    fixed,
    load_state,
    save_state,
    seed_generators,
)
from train.coldstart import training_world
from train.command import run, saved_steps
from train.data import skipped_rows
from train.export import export
from train.learner import Learner
from train.options import run_options, setting_options, with_settings
from train.parallel import join
from train.precision import fast_attention, keep_heap, slowness_note
from train.presets_sft import PRESETS, SftConfig
from train.progress import RunLog
from train.ranges import check_device
from train.reinject import Turn, build_sequences
from train.schedule import warmup_stable_decay
from train.tasks import with_pixel_limit
from train.trainee import Trainee
from train.turns import FileTurns, LookWorldTurns, Turns
from train.worlds import read_world

PLAIN = ("step", "positions", "skipped", "origin")
FREE = ("steps", "epochs", "save_every", "tensorboard", "micro_batch", "recompute")


class Trainer:
    """The state of a run: model, optimizer, step, place in the data; saved as one file."""

    def __init__(
        self,
        config: SftConfig,
        ckpt: Path,
        output: Path,
        *,
        data: Path | None = None,
        images: Path | None = None,
        world: WorldConfig | None = None,
        device: str = "cpu",
    ) -> None:
        self.config, self.output, self.device = config, output, device
        self.policy = config.look.policy
        own = "tokenizer" if join()[0] == 0 else f"tokenizer-{join()[0]}"
        model, self.processor, self.companions = prepare(ckpt, output / own)
        self.model_config = model.config
        start = fingerprint(model)
        controls = self.processor.vocabulary.controls
        self.reflection_id = controls[REFLECTION_OPEN]
        rows = [controls[tag] for tag in ALL_TAGS] if config.optim.only_tag_rows else None
        learner = Learner(model, train_vision=config.optim.train_vision, rows=rows)
        self.trainee = Trainee(learner, config.optim, device=device)
        if config.data.global_batch % (config.data.micro_batch * self.trainee.world):
            raise UsageError(
                f"global_batch: expected a multiple of micro_batch {config.data.micro_batch} x "
                f"{self.trainee.world} processes, got {config.data.global_batch}"
            )
        self.step, self.skipped_before = 0, 0.0
        seed_generators(config.run.seed + self.trainee.rank)
        state = load_state(self.path) if self.trainee.rank == 0 else None
        plain = self.trainee.gathered(
            None if state is None else {name: state[name] for name in PLAIN}
        )[0]
        positions = [0] * self.trainee.world if plain is None else plain["positions"]
        self.turns = self._turns(data, images, world or training_world(), positions)
        self.origin: dict[str, Any] = {
            "settings": fixed(asdict(config), FREE),
            "start": start,
            "data": self.turns.fingerprint,
        }
        if plain is not None:
            was = {"start": start} | plain["origin"]  # an older state does not say
            check_same_run(
                self.path,
                was["settings"] | {"--ckpt": was["start"], "--data": was["data"]},
                self.origin["settings"] | {"--ckpt": start, "--data": self.turns.fingerprint},
            )
            self.trainee.load(state or {})
            self.step, self.skipped_before = plain["step"], plain["skipped"]

    @property
    def path(self) -> Path:
        """The file that a later run goes on from."""
        return self.output / "sft.pt"

    @property
    def learner(self) -> Learner:
        return self.trainee.learner

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        run = self.config.run
        if run.steps:
            return run.steps
        if not isinstance(self.turns, FileTurns):
            raise UsageError("steps: expected a number, since LookWorld has no end")
        return max(1, run.epochs * self.turns.num_rows // self.config.data.global_batch)

    def _turns(
        self, data: Path | None, images: Path | None, world: WorldConfig, positions: list[int]
    ) -> Turns:
        if len(positions) != self.trainee.world:
            raise UsageError(
                f"{self.path}: was begun by {len(positions)} processes, now there are "
                f"{self.trainee.world}\nstart as many, or give another output",
                name="E_STATE",
            )
        share, seed = (self.trainee.rank, self.trainee.world), self.config.run.seed
        position = positions[self.trainee.rank]
        processor = with_pixel_limit(self.processor, self.config.data.max_pixels)
        asked: dict[str, Any] = {
            "seed": seed,
            "policy": self.policy,
            "max_length": self.config.data.max_length,
            "share": share,
            "position": position,
        }
        if data is None:
            return LookWorldTurns(processor, world=world, **asked)
        return FileTurns(processor, data, images, **asked)

    def train_step(self) -> dict[str, float]:
        """The metrics of one step of the optimizer."""
        with fast_attention() if self.device == "cpu" else nullcontext():
            return self._train_step()

    def _train_step(self) -> dict[str, float]:
        started = time.perf_counter()
        data, trainee = self.config.data, self.trainee
        turns = [self.turns.take() for _ in range(data.global_batch // trainee.world)]
        num_targets = trainee.total(sum(map(num_learned, turns)))
        loss, tokens, injected = 0.0, 0, 0
        turns.sort(key=lambda t: len(t.prompt.input_ids) + len(t.response_ids))  # little padding
        for part in pieces(turns, data.micro_batch):
            log_probs, batch = self.log_probs(part)
            # FSDP averages gradients over the processes; the loss is the mean over all targets.
            own = -log_probs.sum() / num_targets
            (own * trainee.world).backward()
            loss += float(own.detach())
            tokens += sum(len(s) for s in batch)
            injected += sum(len(s) - len(t.prompt.input_ids) - len(t.response_ids) + 1
                            for s, t in zip(batch, part, strict=True))  # fmt: skip
        rate = self.rate()
        norm = trainee.step(rate)
        self.step += 1
        seconds = time.perf_counter() - started
        return {
            "loss": trainee.total(loss),
            "lr": rate,
            "norm": norm,
            "tok_s": trainee.total(tokens) / seconds,
            "injected_tokens": trainee.total(injected) / data.global_batch,
            "skipped_rows": self.num_skipped(),
        }

    def num_skipped(self) -> float:
        """Rows left out by all processes since the run was begun."""
        return self.skipped_before + self.trainee.total(self.turns.skipped.total())

    def rate(self) -> float:
        """The learning rate of the present step."""
        optim, total = self.config.optim, self.num_steps
        warmup = round(optim.warmup_frac * total)
        return optim.lr * warmup_stable_decay(
            self.step, total=total, warmup=warmup, decay_frac=optim.decay_frac
        )

    def log_probs(self, turns: Sequence[Turn]) -> tuple[Tensor, list[Any]]:
        """(N,) log-probabilities of the targets, and the sequences, copies in their places."""
        visual_ME: Tensor | None = None

        def masses(batch: Batch, query: MassQuery) -> Tensor:
            nonlocal visual_ME
            batch = batch.to(self.device)
            if visual_ME is None:
                visual_ME = self.learner.see(batch)
            query = MassQuery(
                query_index_BQ=query.query_index_BQ.to(self.device),
                key_index_BN=query.key_index_BN.to(self.device),
            )
            return self.learner.masses(batch, query, visual_ME)

        sequences = build_sequences(
            turns,
            self.policy,
            reflection_id=self.reflection_id,
            config=self.model_config,
            masses=masses,
        )
        batch = collate(sequences).to(self.device)
        if visual_ME is None or self.learner.train_vision:
            visual_ME = self.learner.see(batch)
        return self.learner.log_probs(batch, visual_ME), sequences

    def save(self) -> None:
        """Nothing; the whole state is on disk, or the one before."""
        state = self.trainee.state()
        plain = {
            "step": self.step,
            "positions": self.trainee.gathered(self.turns.position),
            "skipped": self.num_skipped(),
            "origin": self.origin,
        }
        if self.trainee.rank == 0:
            save_state(self.path, state | plain)
        self.trainee.total(0)  # nobody goes on before the file is there

    def export(self) -> Path:
        """The checkpoint directory of the present weights, in bfloat16."""
        directory = self.output / "checkpoint"
        state = self.trainee.model_state()
        if self.trainee.rank == 0:
            export(state, self.model_config, directory, companions=self.companions)
        return directory


def prepare(ckpt: Path, directory: Path) -> tuple[QwenVL, Processor, Path]:
    """Model, processor, and where the tokenizer's files are: a checkpoint without the tags gets
    them, in `directory`."""
    processor, model = Processor.from_pretrained(ckpt), load_model(ckpt)
    if not missing_tags(processor.vocabulary):
        return model, processor, ckpt
    ids = write_with_tags(ckpt, directory, model.config.text.vocab_size)
    start_rows(model, processor.vocabulary, ids)
    return model, Processor.from_pretrained(directory), directory


def num_learned(turn: Turn) -> int:
    """Response tokens of the turn that have a loss."""
    return len(turn.response_ids) if turn.learn is None else int(turn.learn.sum())


def sft(trainer: Trainer) -> Path:
    """The exported checkpoint's directory; goes on where an earlier run stopped."""
    run, output, first = trainer.config.run, trainer.output, trainer.trainee.rank == 0
    name = "sft" if first else f"sft-{trainer.trainee.rank}"
    board = Board(
        output / "tensorboard", run.tensorboard if first else "off", first=trainer.step + 1
    )
    total = trainer.num_steps
    with (
        RunLog(output, name, total=total, done=trainer.step) as log,
        saved_steps(trainer.step) as saved,
    ):
        while trainer.step < total:
            metrics = trainer.train_step()
            step = trainer.step
            if first:
                shown = {key: float(f"{value:.6g}") for key, value in metrics.items()}
                log.advance(step, "loss {loss:.4f} {tok_s:.0f} tok/s".format(**metrics))
                log.write({"step": step, **shown})
                board.write(step, shown)
            if step % run.save_every == 0 or step == total:
                trainer.save()
                saved.step = step
    board.close()
    return trainer.export()


@click.command()
@run_options(PRESETS)
@click.option("--data", type=click.Path(exists=True, path_type=Path),
              help="JSONL of image, question and response.  [default: LookWorld]")  # fmt: skip
@click.option("--images", type=click.Path(exists=True, path_type=Path),
              help="What image names are relative to.  [default: beside --data]")  # fmt: skip
@setting_options(SftConfig, PRESETS)
def main(
    ckpt: Path,
    output: Path,
    preset: str,
    data: Path | None,
    images: Path | None,
    world: tuple[str, ...],
    device: str,
    **values: Any,
) -> None:
    """Fine-tune on responses, with visual tokens put in before each <REFLECTION>."""
    config = with_settings(PRESETS[preset], values)
    check_device(device)
    first, asked = join()[0] == 0, read_world(world)
    text = json.dumps(asdict(config) | {"world": asdict(asked)}, indent=1)
    if first:
        click.echo(text, err=True)
        if note := slowness_note(config.optim.dtype, device):
            click.echo(note, err=True)
    trainer = Trainer(config, ckpt, output, data=data, images=images, world=asked, device=device)
    total = trainer.num_steps
    check_not_beyond(trainer.step, total)
    if first:  # behind the checks: a refused run leaves the settings of the one before
        click.echo(f"{trainer.step} of {total} steps done", err=True)
        with atomic_file(output / "sft_config.json") as file:
            file.write(text.encode() + b"\n")
    directory = sft(trainer)
    if first:
        if note := skipped_rows(trainer.turns.skipped):
            click.echo(note, err=True)
        click.echo(directory)


if __name__ == "__main__":
    keep_heap()
    sys.exit(run(main, goes_on="its last save"))
