"""JSON from files that nobody vouches for: bounded, without duplicate keys, finite numbers."""

from __future__ import annotations

import codecs
import json
import math
from typing import Any

from la_trt.errors import CheckpointError, LookAgainError

MAX_DEPTH = 100
MAX_SHOWN = 120


def show(value: object) -> str:
    """`repr(value)` cut to 120 characters: safe to print, on one line, whatever the file holds."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def parse_json(
    data: bytes,
    *,
    where: str,
    todo: str,
    error: type[LookAgainError] = CheckpointError,
    name: str = "E_JSON",
    max_bytes: int = 64 << 20,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """The value of one JSON document in UTF-8.

    Raises `error(name=name)` saying `where` and `todo` when the document is over `max_bytes`,
    nested deeper than `max_depth`, has a key twice, or a number that is not finite.
    """

    def refuse(what: str) -> LookAgainError:
        return error(f"{where}: {what}\n{todo}", name=name)

    if len(data) > max_bytes:
        raise refuse(f"{len(data)} bytes of JSON, the limit is {max_bytes}")
    if data.startswith(codecs.BOM_UTF8):
        raise refuse("not valid JSON: starts with a byte order mark")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise refuse(f"JSON is nested deeper than {max_depth} levels") from None
    except UnicodeDecodeError as problem:
        raise refuse(f"not UTF-8 (byte {problem.start})") from None
    except (json.JSONDecodeError, _Refused) as problem:
        raise refuse(f"not valid JSON: {problem}") from None
    except ValueError:  # Python's own limit, with advice for programmers
        raise refuse("not valid JSON: an integer of too many digits") from None
    if _deeper_than(value, max_depth):
        raise refuse(f"JSON is nested deeper than {max_depth} levels")
    return value


class _Refused(Exception):
    """What JSON has no place for."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"key {show(twice)} stands twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"number {show(text)} is out of range")
    return value


def _no_constant(text: str) -> float:
    raise _Refused(f"{text} is not a JSON number")


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = [item for item in below if isinstance(item, dict | list)]
        if not level:
            return False
    return True
