"""Bundles to serve: random weights for behaviour, the shipped ones for right answers."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from build_engines.build import build
from la_trt.assets import TINY_CHECKPOINT
from tests.serve.running import Running, open_bundle, running
from tests.tiny import write_tiny_checkpoint

BACKEND = "native" if find_spec("la_trt._native") else "onnx"


@pytest.fixture(scope="session")
def backend() -> str:
    """The compiled engine where it is built."""
    return BACKEND


@pytest.fixture(scope="session")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights."""
    path = tmp_path_factory.mktemp("serve") / "tiny"
    build(tiny_checkpoint, path)
    return path


@pytest.fixture(scope="session")
def reflecting_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose greedy answer is `<REFLECTION>` again and again."""
    root = tmp_path_factory.mktemp("serve-reflecting")
    build(write_tiny_checkpoint(root / "ckpt", always=("<REFLECTION>",)), root / "bundle")
    return root / "bundle"


@pytest.fixture(scope="session")
def shipped_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped checkpoint."""
    path = tmp_path_factory.mktemp("serve-shipped") / "shipped"
    build(TINY_CHECKPOINT, path)
    return path


@pytest.fixture(scope="module")
def served(bundle: Path, backend: str) -> Iterator[Running]:
    """A server of random weights that a whole module shares."""
    with running(lambda: open_bundle(bundle, backend, max_batch=4)) as found:
        yield found
