"""A synchronous iterator as an asynchronous one, its work on a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")
_END = object()


async def iterate(executor: Executor, start: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
    """The items of `start()`, which is called, advanced and closed on `executor`.

    Leaving the loop early, by `break` with `aclose()` or by cancellation, closes the iterator
    there too, once the item under way is done.
    """
    loop = asyncio.get_running_loop()
    iterator: list[Iterator[T]] = []

    def advance() -> object:
        if not iterator:
            iterator.append(start())
        return next(iterator[0], _END)

    def close() -> None:
        for one in iterator:
            ending = getattr(one, "close", None)
            if ending is not None:
                ending()

    try:
        while (item := await loop.run_in_executor(executor, advance)) is not _END:
            yield item  # type: ignore[misc]
    finally:
        await asyncio.shield(loop.run_in_executor(executor, close))
