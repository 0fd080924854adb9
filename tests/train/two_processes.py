"""SFT on two gloo processes; leaves metrics and states.

`python -m tests.train.two_processes CHECKPOINT DATA DIRECTORY`: in DIRECTORY `two` runs to the
end at once, `again` is begun by two processes that stop after two steps, and goes on from there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch._dynamo  # a first step imports it; here it is done once for all children
import torch.distributed as dist

from train.presets_sft import DataConfig, LookConfig, RunConfig, SftConfig
from train.sft import Trainer, sft
from train.trainee import OptimConfig

ROOT = Path(__file__).parents[2]


class _Trainer(Protocol):
    def train_step(self) -> object: ...

    def save(self) -> None: ...


_T = TypeVar("_T", bound=_Trainer)
CONFIG = SftConfig(
    run=RunConfig(steps=4, save_every=2, tensorboard="off"),
    look=LookConfig(reattention="route", inject="embed"),
    data=DataConfig(global_batch=4, micro_batch=1, max_length=2000),
    optim=OptimConfig(
        lr=1e-2,
        weight_decay=0.1,
        warmup_frac=0.0,
        dtype="float32",
        train_vision=True,
        only_tag_rows=True,
        recompute=True,
    ),
)


def run(ckpt: Path, data: Path, output: Path, *, stop_after: int = 0) -> None:
    go_on(Trainer(CONFIG, ckpt, output, data=data), sft, stop_after)


def go_on(trainer: _T, to_the_end: Callable[[_T], object], stop_after: int) -> None:
    """Nothing; the run has ended, or is saved after so many steps."""
    if not stop_after:
        to_the_end(trainer)
        return
    for _ in range(stop_after):
        trainer.train_step()
    trainer.save()


def together(what: Callable[[], None]) -> None:
    """Nothing; two processes have done it, as ranks 0 and 1.

    They meet at a file: a free port may be taken by the time that they do.
    """
    meeting = Path(tempfile.mkdtemp(), "store")
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            try:
                place = f"file://{meeting}"
                dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
                what()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    shutil.rmtree(meeting.parent)
    assert codes == [0, 0], f"the processes ended with {codes}"


def start(module: str, *arguments: Path) -> None:
    """Nothing; `module` has run in a process of its own, which may fork as it likes."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def main() -> None:
    torch.set_num_threads(1)
    ckpt, data, directory = map(Path, sys.argv[1:])
    together(lambda: run(ckpt, data, directory / "two"))
    together(lambda: run(ckpt, data, directory / "again", stop_after=2))
    together(lambda: run(ckpt, data, directory / "again"))


if __name__ == "__main__":
    main()
