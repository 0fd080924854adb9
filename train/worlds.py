"""LookWorld's dials as a command line gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from la_trt.errors import UsageError
from la_trt.lookworld import WorldConfig
from train.coldstart import training_world
from train.rows import RowError, dials_of_text, typed_dials


def read_world(settings: Sequence[str]) -> WorldConfig:
    """The cold start's world with dials from texts `name=value`, value in JSON, or JSON objects.

    Raises UsageError.
    """
    values: dict[str, Any] = {}
    for text in settings:
        values |= dials_of_text(text)
    try:
        return replace(training_world(), **typed_dials(values))
    except RowError as error:
        raise UsageError(str(error).removeprefix("lookworld: ")) from None
