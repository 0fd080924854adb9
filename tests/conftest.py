"""What every test may use: a small checkpoint and a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights; read it, do not change it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("ckpt") / "tiny")


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PNG of 100 x 70 pixels with a red circle."""
    path = tmp_path_factory.mktemp("picture") / "circle.png"
    image = Image.new("RGB", (100, 70), "white")
    ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill="red")
    image.save(path)
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What starts Ray runs with `make test-ray`."""
    if "ray" in str(config.option.markexpr):
        return
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.skip(reason="starts Ray: make test-ray"))
