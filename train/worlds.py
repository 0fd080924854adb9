"""LookWorld's dials as a command line gives them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from la_trt.errors import UsageError
from la_trt.lookworld import WorldConfig
from train.coldstart import training_world


def read_world(settings: Sequence[str]) -> WorldConfig:
    """The cold start's world with dials from texts `name=value`, value in JSON.

    Raises UsageError.
    """
    values = {}
    for text in settings:
        name, _, value = text.partition("=")
        try:
            values[name] = json.loads(value)
        except ValueError:
            raise UsageError(f"world {text!r}: expected name=value, the value JSON") from None
    try:
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return replace(training_world(), **values | lists)
    except TypeError as error:
        raise UsageError(f"world: {error}") from None
