"""BRPO: the model answers, three rules reward it, and it learns which of its answers were better.

`python -m train.brpo --ckpt DIR --output DIR --preset lookworld-tiny`. Run it again to go on where
it stopped; with `torchrun`, each process asks questions of its own and gradients are averaged.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from la_trt.api import end_tokens
from la_trt.files.atomic import atomic_file
from la_trt.lookworld import WorldConfig
from la_trt.model.weights import load_model, save_pretrained
from la_trt.processor.prompt import Processor
from la_trt.reattention.policy import resolve_policy
from la_trt.session import Session
from train.actor import DTYPES, make_actor
from train.board import Board
from train.checkpointing import (
    check_not_beyond,
    check_same_run,
    fingerprint,
    fixed,
    load_state,
    save_state,
)
from train.coldstart import training_world
from train.command import run, saved_steps
from train.data import skipped_rows
from train.options import run_options, setting_options, with_settings
from train.parallel import from_first, join
from train.precision import copy_in, fast_attention, slowness_note
from train.presets_brpo import PRESETS, BrpoConfig
from train.progress import RunLog
from train.ranges import check_device
from train.rollout import (
    Answer,
    EngineFactory,
    banned_tokens,
    engine_factory,
    roll_out,
    summary,
    training_sequence,
)
from train.tasks import FileTasks, LookWorldTasks, Task, Tasks, with_pixel_limit
from train.update import Row, Updater, mean_metrics, means
from train.validate import quick_scores
from train.worlds import read_world

PLAIN = ("step", "position", "config", "origin")
FREE = ("steps", "save_every", "validate_every", "num_validation", "tensorboard")


class Trainer:
    """The state of a run: weights, optimizer, step, place in the data; saved as one file."""

    def __init__(
        self,
        config: BrpoConfig,
        ckpt: Path,
        output: Path,
        *,
        data: Path | None = None,
        images: Path | None = None,
        world: WorldConfig | None = None,
        device: str = "cpu",
        make_engine: EngineFactory | None = None,
    ) -> None:
        self.config, self.ckpt, self.output, self.device = config, ckpt, output, device
        self.rank, self.world = join()
        world = self.lookworld = world or training_world()
        processor = Processor.from_pretrained(ckpt)
        self.processor = with_pixel_limit(processor, config.rollout.max_pixels)
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # a sharded master stays on the CPU until FSDP takes it, block by block
        model = load_model(ckpt, device="cpu" if config.optim.shard else device)
        self.eos = end_tokens(model.config, processor, ckpt)
        self.policy = resolve_policy(config.rollout.policy)
        self.make_engine = make_engine or engine_factory(config.rollout, ckpt)
        self.origin = {"start": fingerprint(model, device)}
        dtype = DTYPES[config.optim.dtype]
        self.reference = copy_in(model, dtype, device) if config.objective.beta else None
        self.actor = make_actor(model, config.optim, device)
        banned = banned_tokens(self.policy, processor.vocabulary)
        self.updater = Updater(
            config, self.actor, self.reference, banned=banned, device=device, rank=self.rank
        )
        self.step = 0
        state = load_state(self.path) if self.rank == 0 else None
        plain = from_first(None if state is None else {name: state[name] for name in PLAIN})
        self.tasks = self._tasks(data, images, world, 0 if plain is None else plain["position"])
        if plain is not None:
            was, now = plain["origin"], self.origin
            check_same_run(
                self.path,
                fixed(plain["config"], FREE) | {"--ckpt": was["start"], "--data": was["data"]},
                fixed(config.to_dict(), FREE) | {"--ckpt": now["start"], "--data": now["data"]},
            )
            self.actor.load({} if state is None else state["actor"])
            self.step = plain["step"]

    @property
    def path(self) -> Path:
        """The file that a later run goes on from."""
        return self.output / "brpo.pt"

    def _tasks(
        self, data: Path | None, images: Path | None, world: WorldConfig, position: int
    ) -> Tasks:
        seed = self.config.run.seed
        if data is None:
            self.origin["data"] = f"lookworld {world}"
            return LookWorldTasks(self.processor, seed=seed, world=world, position=position)
        rollout, text = self.config.rollout, self.actor.model.config.text
        longest = min(rollout.max_length, text.max_position_embeddings) - rollout.max_completion
        tasks = FileTasks(
            self.processor, data, images, seed=seed, max_prompt=longest, position=position
        )
        self.origin["data"] = tasks.fingerprint
        return tasks

    def save(self) -> None:
        """Nothing; the whole state is on disk, or the one before. To be called everywhere."""
        actor = self.actor.state()
        if self.rank == 0:
            state = {
                "step": self.step,
                "position": self.tasks.position,
                "actor": actor,
                "config": self.config.to_dict(),
                "origin": self.origin,
            }
            save_state(self.path, state)

    def export(self) -> Path:
        """The checkpoint directory of the present weights, in bfloat16."""
        directory = self.output / "checkpoint"
        save_pretrained(self.actor.model, directory, dtype=torch.bfloat16, companions=self.ckpt)
        return directory

    def train_step(self) -> dict[str, float]:
        """The metrics of one step: new questions, answers, rewards, updates."""
        started = time.perf_counter()
        num = self.config.rollout.questions * self.world
        tasks = [self.tasks.take() for _ in range(num)][self.rank :: self.world]
        answers, rows = self.draw(tasks)
        drawn = time.perf_counter()
        updates = self.updater.learn(rows, self.step)
        self.step += 1
        ended = time.perf_counter()
        tokens = sum(len(a.result.tokens) for a in answers)
        metrics = summary(answers, self.config.rollout.group_size) | means(updates)
        metrics |= {"rollout_s": drawn - started, "train_s": ended - drawn}
        metrics = mean_metrics(metrics)
        return metrics | {"tok_s": tokens * self.world / (ended - started)}

    def draw(self, tasks: Sequence[Task]) -> tuple[list[Answer], list[list[Row]]]:
        """The answers to the tasks, and for each task the rows of those that are learnt from."""
        config = self.config
        session = Session(
            self.make_engine(self.actor.model), self.processor.vocabulary, eos_token_ids=self.eos
        )
        answers = roll_out(
            session,
            tasks,
            self.policy,
            config.rollout,
            config.reward,
            divide_by_std=config.objective.divide_by_std,
        )
        rows: list[list[Row]] = [[] for _ in tasks]
        for answer in answers:
            task, config_of = tasks[answer.question], self.actor.model.config
            sequence = training_sequence(task, answer, self.policy, config_of)
            engine = torch.from_numpy(answer.logprobs[answer.drawn & answer.kept])
            rows[answer.question].append(Row(sequence, answer.advantage, engine))
        return answers, rows


def brpo(trainer: Trainer) -> Path:
    """The exported checkpoint's directory; goes on where an earlier run stopped."""
    config, output = trainer.config.run, trainer.output
    name = "brpo" if trainer.rank == 0 else f"brpo-{trainer.rank}"
    board = Board(
        output / "tensorboard",
        config.tensorboard if trainer.rank == 0 else "off",
        first=trainer.step + 1,
    )
    half = trainer.config.optim.dtype == "bfloat16"
    attention = fast_attention() if half and trainer.device == "cpu" else nullcontext()
    log_of_run = RunLog(output, name, total=config.steps, done=trainer.step)
    with log_of_run as log, saved_steps(trainer.step) as saved, attention:
        while trainer.step < config.steps:
            report(trainer, trainer.train_step(), log, board)
            step = trainer.step
            validate = bool(config.validate_every) and step % config.validate_every == 0
            if validate or step % config.save_every == 0 or step == config.steps:
                if trainer.rank == 0:
                    directory = trainer.export()
                    if validate:
                        policy, num = trainer.config.rollout.policy, config.num_validation
                        scores = quick_scores(directory, num, policy, trainer.lookworld)
                        log.write({"step": step, **scores})
                        accuracy = scores["validation"]
                        board.write(step, {f"validation/{f}": accuracy[f] for f in accuracy})
                trainer.save()  # last, so that a killed run repeats what it has not recorded
                saved.step = step
    board.close()
    return output / "checkpoint"


def report(trainer: Trainer, metrics: dict[str, float], log: RunLog, board: Board) -> None:
    """Nothing; the metrics of a step stand in the log, on the board and beside the bar."""
    if trainer.rank:
        return
    step, shown = trainer.step, {k: float(f"{v:.6g}") for k, v in metrics.items()}
    note = "loss {loss:.4f} reward {reward:.3f} {tok_s:.0f} tok/s"
    log.advance(step, note.format(**{"loss": 0.0} | metrics))
    log.write({"step": step, **shown, "skipped_rows": trainer.tasks.skipped.total()})
    board.write(step, shown)


@click.command()
@run_options(PRESETS)
@click.option("--data", type=click.Path(path_type=Path),
              help="JSONL of image, question and answer.  [default: LookWorld]")  # fmt: skip
@click.option("--images", type=click.Path(path_type=Path),
              help="What image names are relative to.  [default: beside --data]")  # fmt: skip
@setting_options(BrpoConfig, PRESETS)
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
    """Train a model by reinforcement on its own answers."""
    config = with_settings(PRESETS[preset], values)
    check_device(device)
    asked = read_world(world)
    said = {"preset": preset, **config.to_dict(), "world": asdict(asked)}
    shown, first = json.dumps(said, indent=1), join()[0] == 0
    if first:
        click.echo(shown, err=True)
        if note := slowness_note(config.optim.dtype, device):
            click.echo(note, err=True)
    trainer = Trainer(config, ckpt, output, data=data, images=images, world=asked, device=device)
    check_not_beyond(trainer.step, config.run.steps)
    if first:
        with atomic_file(output / "brpo_config.json") as file:
            file.write(shown.encode() + b"\n")
    directory = brpo(trainer)
    if first:
        if note := skipped_rows(trainer.tasks.skipped):
            click.echo(note, err=True)
        click.echo(directory)


if __name__ == "__main__":
    sys.exit(run(main, goes_on="its last save"))
