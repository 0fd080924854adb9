"""LookWorld's dials as a command line gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from la_trt.lookworld import WorldConfig
from train.coldstart import training_world
from train.rows import dials_of_text


def read_world(settings: Sequence[str]) -> WorldConfig:
    """The cold start's world with dials from texts `name=value`, value in JSON, or JSON objects.

    Raises UsageError.
    """
    values: dict[str, Any] = {}
    for text in settings:
        values |= dials_of_text(text)
    lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    return replace(training_world(), **values | lists)
