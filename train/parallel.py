"""Training on several processes of one thread each, for machines whose cores others use too.

One process with two threads waits for the slower thread in every small operation. Processes
meet once a step. `python -m torch.distributed.run --nproc-per-node 2 -m train.coldstart ...`
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> tuple[int, int]:
    """(rank, number of processes), having joined the group if the launcher started several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        torch.set_num_threads(1)
        _begin(timeout=timedelta(hours=2))
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def _begin(**settings: Any) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, **settings)
    atexit.register(_leave)


def _leave() -> None:
    # A group that is left to the interpreter's end still has threads, for which C++ may abort.
    if dist.is_initialized():
        dist.destroy_process_group()


def join_alone() -> None:
    """Nothing; this process is a group of one, for code that asks for a group."""
    if not dist.is_initialized():
        alone = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in __all__
        _begin(store=alone, rank=0, world_size=1)


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


def from_first(value: Any) -> Any:
    """Process 0's value in every process; what the others give does not matter.

    Plain values and CPU tensors, in dicts, lists and tuples. Tensors are sent one by one, so that
    nothing but the value itself has to find room.
    """
    if not dist.is_initialized():
        return value
    first = dist.get_rank() == 0
    outline = [_with_tensors(value, lambda t: t.to("meta")) if first else None]
    dist.broadcast_object_list(outline, src=0)

    def sent(tensor: Tensor) -> Tensor:
        own = tensor.contiguous() if first else torch.empty(tensor.shape, dtype=tensor.dtype)
        dist.broadcast(own, src=0)
        return own

    return _with_tensors(value if first else outline[0], sent)


def _with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with each tensor changed, in the order of the value."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _with_tensors(part, change) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_tensors(part, change) for part in value)
    return value


def largest(value: int) -> int:
    """The largest of the processes' values."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)
