"""Training state in one file that is whole or absent, whenever the process dies.

`save_state(path, {...})` and `load_state(path)`: a dict of tensors and plain values. The RNG
state of the process is one more entry (`rng_state`), so that a resumed run goes on bit for bit.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from la_trt.errors import CheckpointError, UsageError
from la_trt.files.atomic import atomic_file
from la_trt.files.json_lines import differences


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Nothing; `path` holds the state, durable, when this returns.

    Written beside the path, then renamed: at every moment the path holds the whole older state
    or the whole new one. Values: tensors, numbers, texts, None, and lists, tuples and dicts of
    them. Raises MachineError (E_WRITE), the older state then being untouched.
    """
    with atomic_file(path) as file:
        watched = _Watched(file)
        try:
            torch.save(dict(state), watched)
        except RuntimeError as error:  # torch's writer hides why the file did not take it
            if watched.problem is None:
                raise
            raise watched.problem from error


class _Watched:
    """A file that remembers the error of a write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.problem: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as problem:
            self.problem = problem
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def load_state(path: str | Path) -> dict[str, Any] | None:
    """The state at `path` on the CPU, None where there is no file.

    Nothing but tensors and plain values is read: no code runs. Raises CheckpointError for a file
    that is no such state.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{path}: not a training state ({reason})\n"
            "remove it to start afresh, or choose another output",
            name="E_STATE",
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dict, got {type(state).__name__}")
    return state


def check_not_beyond(done: int, steps: int) -> None:
    """Raise UsageError E_STATE where a run has done more steps than are asked for."""
    if done > steps:
        raise UsageError(
            f"steps: {done} are done already, {steps} asked for\n"
            f"give {done} or more, or another output",
            name="E_STATE",
        )


def fixed(config: Mapping[str, Mapping[str, Any]], free: Collection[str]) -> dict[str, Any]:
    """The settings that a run must keep, by name: those of all parts but `free`."""
    flat = {name: value for part in config.values() for name, value in part.items()}
    return {name: value for name, value in flat.items() if name not in free}


def check_same_run(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError E_STATE where the state at `path` was begun with other values than `now`."""
    found = differences(dict(before), dict(now))
    differ = [f"{name} {was}, now {wanted}" for name, was, wanted in found]
    if differ:
        raise UsageError(
            f"{path}: was begun with {'; '.join(differ)}\ngive the same, or another output",
            name="E_STATE",
        )


def fingerprint(model: nn.Module, device: str = "cpu") -> str:
    """A digest that tells models apart: of the names, shapes and sums of all weights.

    `device` adds them up, as the last digits of a sum depend on it; so they do on the number of
    threads, which is one here.
    """
    digest, threads = hashlib.sha256(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, value in model.state_dict().items():
            total = float(value.to(device).double().sum())
            digest.update(f"{name} {list(value.shape)} {total!r}".encode())
    finally:
        torch.set_num_threads(threads)
    return digest.hexdigest()


def seed_generators(seed: int) -> None:
    """Nothing; the process's global generators start from `seed`, for a run that starts afresh."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of the process's global generators: torch (CPU and every GPU), numpy, Python."""
    version, words, next_gauss = random.getstate()
    name, keys, at, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": (version, list(words), next_gauss),
        "numpy": (name, torch.tensor(np.asarray(keys, np.int64)), at, has_gauss, gauss),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Nothing; the global generators go on from a `rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))
    name, keys, at, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), at, has_gauss, gauss))
