"""Runs of SFT in child processes that die where they are told to; prints nothing, leaves files.

`python -m tests.train.killed_runs CHECKPOINT DIRECTORY`: an uninterrupted run, and one killed
again and again: in the middle of a step, in the middle of writing a state, from outside once the
log shows a step, and just after a state took its place.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # a first step imports it; here it is done once for all children

from la_trt.lookworld import WorldConfig
from train.presets_sft import DataConfig, LookConfig, RunConfig, SftConfig
from train.sft import Trainer, sft
from train.trainee import OptimConfig

STEPS = 6
WORLD = WorldConfig(
    sizes=((84, 84),),
    max_objects=2,
    reasoning_length=0,
    family_weights=(0, 1, 1, 0, 0, 0, 0, 0, 0, 1),
)
CONFIG = SftConfig(
    run=RunConfig(steps=STEPS, save_every=2, tensorboard="off"),
    look=LookConfig(reattention="route", inject="embed"),
    data=DataConfig(global_batch=2, micro_batch=1, max_length=2000),
    optim=OptimConfig(lr=1e-3, warmup_frac=0.5, decay_frac=0.3, dtype="float32"),
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_step(number: int) -> None:
    """Die in the `number`-th step of this process, half of the weights being spoilt."""
    step, count = torch.optim.AdamW.step, 0

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += not options  # torch has a call of its own when a state is read
        if count == number and not options:
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"][::2]:
                    parameter.add_(1)
            die()
        return step(self, *args, **options)

    torch.optim.AdamW.step = broken  # type: ignore[method-assign]


def in_a_save(number: int) -> None:
    """Die in the `number`-th save, half of the file being written."""
    save, count = torch.save, 0

    def broken(state: Any, file: Any, **options: Any) -> None:
        nonlocal count
        save(state, file, **options)
        count += not options  # torch has calls of its own
        if count == number and not options:
            file.flush()
            file.truncate(file.tell() // 2)
            os.fsync(file.fileno())
            die()

    torch.save = broken


def after_a_rename(number: int) -> None:
    """Die as soon as the `number`-th state has its name."""
    rename, count = os.replace, 0

    def broken(source: Any, target: Any) -> None:
        nonlocal count
        rename(source, target)
        if Path(target).name == "sft.pt":
            count += 1
            if count == number:
                die()

    os.replace = broken


def run(
    ckpt: Path, output: Path, prepare: Callable[[], None] | None = None, *, until: int = 0
) -> int:
    """How a child ended that trains in `output`: 0, or the signal that killed it.

    It is killed as soon as its log shows the step `until`.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if prepare is not None:
                prepare()
            sft(Trainer(CONFIG, ckpt, output, world=WORLD))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    log, running = output / "sft.jsonl", os.WEXITED | os.WNOHANG | os.WNOWAIT
    while until and os.waitid(os.P_PID, pid, running) is None:
        if log.exists() and f'"step": {until},' in log.read_text():
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a run failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main() -> None:
    ckpt, directory = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    killed = directory / "killed"
    assert run(ckpt, directory / "whole") == 0
    deaths: list[tuple[Callable[[], None] | None, int]] = [
        (lambda: in_a_step(2), 0),  # before there is any state
        (lambda: in_a_save(1), 0),
        (None, 3),  # the log had no such step; the state is that of step 2
        (lambda: in_a_step(2), 0),
        (lambda: in_a_save(2), 0),  # of step 6
        (lambda: after_a_rename(1), 0),
    ]
    for prepare, until in deaths:
        assert run(ckpt, killed, prepare, until=until) == signal.SIGKILL, "it was to be killed"
    assert run(ckpt, killed) == 0


if __name__ == "__main__":
    main()
