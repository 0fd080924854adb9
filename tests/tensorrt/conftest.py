"""Real builds run with `make tensorrt`, what needs a GPU with `make test-gpu`."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "tensorrt" in str(config.option.markexpr):
        return
    for item in items:
        if item.get_closest_marker("tensorrt"):
            item.add_marker(pytest.mark.skip(reason="builds engines: make tensorrt"))
