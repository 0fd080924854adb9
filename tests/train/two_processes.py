"""SFT on two gloo processes, started as `torchrun` starts them; leaves metrics and states.

`python -m tests.train.two_processes CHECKPOINT DATA DIRECTORY`: in DIRECTORY `two` runs to the
end at once, `again` is begun by two processes that stop after two steps, and goes on from there.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # a first step imports it; here it is done once for all children

from train.presets_sft import DataConfig, LookConfig, RunConfig, SftConfig
from train.sft import Trainer, sft
from train.trainee import OptimConfig

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
    trainer = Trainer(CONFIG, ckpt, output, data=data)
    if stop_after:
        for _ in range(stop_after):
            trainer.train_step()
        trainer.save()
    else:
        sft(trainer)


def together(what: Callable[[], None]) -> None:
    """Nothing; two processes have done it, as ranks 0 and 1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            try:
                what()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0], f"the processes ended with {codes}"


def main() -> None:
    torch.set_num_threads(1)
    ckpt, data, directory = map(Path, sys.argv[1:])
    together(lambda: run(ckpt, data, directory / "two"))
    together(lambda: run(ckpt, data, directory / "again", stop_after=2))
    together(lambda: run(ckpt, data, directory / "again"))


if __name__ == "__main__":
    main()
