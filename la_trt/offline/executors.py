"""Who answers the rows of a batch: this process, or workers on a Ray cluster."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from la_trt.api import LookAgain
from la_trt.errors import LookAgainError, MachineError
from la_trt.offline.answer import Answerer, Record
from la_trt.offline.rows import read

_OBJECT_STORE_BYTES = 512 << 20
_BLOCK_BYTES = 1 << 20
_MAX_BLOCKS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker needs: how to open the model, the batch's settings, and where things are.

    `spans` (N, 3): the rows that are not answered yet, as in `BatchInput`. `chunk`: rows that a
    worker takes at a time.
    """

    open_model: Callable[[], LookAgain]
    settings: dict[str, Any]
    source: Path
    images: Path
    spans: NDArray[np.int64]
    chunk: int

    def chunks(self) -> list[list[list[int]]]:
        """The rows in pieces of at most `chunk`."""
        spans = self.spans.tolist()
        return [spans[i : i + self.chunk] for i in range(0, len(spans), self.chunk)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """`address`: of a cluster, None starts one on this machine. `cpus`: of a worker."""

    address: str | None = None
    num_workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


def run_local(work: Work) -> Iterator[list[Record]]:
    """The records, one at a time, from one engine in this process."""
    answerer = Answerer(work.open_model(), work.settings, work.images)
    for chunk in work.chunks():
        for record in answerer.answer(read(work.source, chunk)):
            yield [record]


def run_on_ray(work: Work, options: RayOptions) -> Iterator[list[Record]]:
    """The records, a chunk at a time, from `num_workers` engines; in no order.

    Every worker opens the model and reads rows and images itself, so that all machines must see
    them under the same paths. A worker that dies is replaced and its chunk is asked again. Raises
    MachineError E_NO_RAY, E_RAY, and what workers raise of ours.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MachineError(
            f"--executor ray needs {error.name}, which is not installed\n"
            "install la-trt[ray], or use --executor local",
            name="E_NO_RAY",
        ) from None
    try:
        _connect(ray, options)
        yield from _stream(ray, work, options)
    except ray.exceptions.RayError as error:
        raise _as_known(error) from error
    finally:
        ray.shutdown()


class _Worker:
    """One engine; takes chunks of rows, gives their records as JSON."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._answerer = Answerer(work.open_model(), work.settings, work.images)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        records: list[str] = []
        for chunk in batch["chunk"]:
            rows = read(self._work.source, json.loads(chunk))
            records.append(json.dumps(list(self._answerer.answer(rows))))
        return {"records": records}


def _connect(ray: Any, options: RayOptions) -> None:
    given: dict[str, Any] = {"address": options.address}
    if options.address is None:
        # Ray reports how it is used unless told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        wanted = options.num_workers * options.cpus + 1
        given = {
            "num_cpus": max(os.cpu_count() or 1, int(np.ceil(wanted))),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **given)
    except (ConnectionError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())[:200]
        raise MachineError(f"Ray: {what}\ncheck --ray-address", name="E_RAY") from error


def _stream(ray: Any, work: Work, options: RayOptions) -> Iterator[list[Record]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    # Ray Data tells of its plans on stderr, where errors and warnings of ours belong.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    chunks = work.chunks()
    lean = Work(
        open_model=work.open_model,
        settings=work.settings,
        source=work.source.absolute(),
        images=work.images.absolute(),
        spans=work.spans[:0],
        chunk=work.chunk,
    )
    # A chunk is a block of its own, so that its records come back when it is done.
    data = ray.data.from_items(
        [{"chunk": json.dumps(chunk)} for chunk in chunks],
        override_num_blocks=min(len(chunks), _MAX_BLOCKS),
    ).map_batches(
        _Worker,
        fn_constructor_args=(lean,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=options.num_workers),
        num_cpus=options.cpus,
        num_gpus=options.gpus or None,
    )
    for row in data.iter_rows():
        yield json.loads(row["records"])


def _as_known(error: BaseException) -> LookAgainError:
    """Our own error below one of Ray's, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LookAgainError):
            return seen
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    what = " ".join(str(error).split())[:300]
    return MachineError(
        f"Ray: {type(error).__name__}: {what}\nrun the command again: it goes on where it was",
        name="E_RAY",
    )
