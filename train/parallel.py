"""Training on several processes of one thread each, for machines whose cores others use too.

One process with two threads waits for the slower thread in every small operation. Processes
meet once a step. `python -m torch.distributed.run --nproc-per-node 2 -m train.coldstart ...`
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> tuple[int, int]:
    """(rank, number of processes), having joined the group if the launcher started several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        torch.set_num_threads(1)
        dist.init_process_group(_backend(), timeout=timedelta(hours=2))
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def join_alone() -> None:
    """Nothing; this process is a group of one, for code that asks for a group."""
    if not dist.is_initialized():
        alone = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in __all__
        dist.init_process_group(_backend(), store=alone, rank=0, world_size=1)


def wait_for_all() -> None:
    """Nothing; every process has come this far."""
    if dist.is_initialized():
        dist.barrier()


def mean_over_processes(tensors: Sequence[Tensor]) -> None:
    """Nothing; each tensor becomes its mean over the processes."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(dist.get_world_size())


def largest(value: int) -> int:
    """The largest of the processes' values."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)
