"""Processes that learn together: how they end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from torch.distributed import TCPStore

from tests.train.two_processes import ROOT

# What is registered first runs last: after the group has been left, if it has.
PROGRAM = """
import atexit
import torch.distributed as dist
atexit.register(lambda: print("left" if not dist.is_initialized() else "held"))
from train import parallel
parallel.{call}()
assert dist.is_initialized() and dist.get_world_size() == {world}
"""


@pytest.mark.parametrize(("call", "world"), [("join_alone", 1), ("join", 2)])
def test_a_process_leaves_its_group_when_it_ends(call: str, world: int) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has one
    place = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(call=call, world=world)],
            cwd=ROOT,
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "left\n"), err
