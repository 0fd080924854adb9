"""From the flags that name a model to a model that is ready to be asked."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import la_trt
from la_trt.assets import TINY_CHECKPOINT
from la_trt.cli.terminal import note, progress_bar
from la_trt.errors import BundleError, InputError, MachineError, UsageError
from la_trt.limits import Limits

if TYPE_CHECKING:
    from la_trt.api import LookAgain
    from la_trt.processor.image import ImageSource
    from la_trt.processor.types import Prompt

SHIPPED = TINY_CHECKPOINT
_WAIT_FOR_OTHER_BUILD_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the user named: a bundle, a checkpoint, or neither (the shipped model)."""

    engine: Path | None = None
    ckpt: Path | None = None
    backend: str = "auto"
    threads: int | None = None
    max_model_len: int | None = None
    kv_dtype: str | None = None
    max_batch: int = 1
    speculate: int = 0

    def __post_init__(self) -> None:
        if self.engine is not None and self.ckpt is not None:
            raise UsageError("--engine and --ckpt name two models\ngive one of them")
        if self.engine is not None and self.backend == "torch":
            raise UsageError(
                "--backend torch runs checkpoints, --engine names a bundle\n"
                "give the checkpoint with --ckpt DIR, or leave --backend out"
            )
        if self.ckpt is not None and self.backend in ("onnx", "native", "tensorrt"):
            raise UsageError(
                f"--backend {self.backend} runs bundles, {self.ckpt} is a checkpoint\n"
                f"{_how_to_build(self.ckpt)}"
            )

        if self.backend == "tensorrt":
            if self.engine is None:
                raise UsageError(
                    "--backend tensorrt runs engines that were built for this GPU\n"
                    "build some with la-trt build --backend tensorrt, then give --engine DIR"
                )
            if self.threads is not None:
                raise UsageError("--threads: TensorRT runs on the GPU\nleave --threads out")

        if self.speculate and self.runs_torch:
            raise UsageError(
                "--speculate: the torch engine takes no guesses\n"
                "leave --speculate out, or build a bundle and run that"
            )

        if self.kv_dtype is not None and (self.runs_torch or self.backend in ("onnx", "tensorrt")):
            raise UsageError(
                "--kv-dtype is for the native engine\n"
                "leave it out, or run a bundle with --backend native"
            )

    @property
    def runs_torch(self) -> bool:
        """Whether the torch engine is to run."""
        return self.ckpt is not None or self.backend == "torch"

    def open(self, limits: Limits | None = None, *, mass: bool = True) -> LookAgain:
        """The model, loaded. Raises BundleError, CheckpointError, MachineError, UsageError.

        `mass`: without, ONNX Runtime decodes a little faster, and no generation may need it.
        """
        from la_trt.api import LookAgain

        options: dict[str, Any] = {"max_batch": self.max_batch}
        if self.threads is not None:
            options["threads"] = self.threads
        if self.max_model_len is not None:
            options["max_len"] = self.max_model_len
        if self.kv_dtype is not None:
            options["kv_dtype"] = self.kv_dtype
        if self.runs_torch:
            return LookAgain.from_checkpoint(self.ckpt or shipped(), limits=limits, **options)
        options["backend"], options["speculate"] = self.backend, self.speculate
        if self.backend in ("auto", "onnx"):
            options["mass"] = mass
        if self.engine is None:
            return _open_shipped(limits, options)
        _refuse_checkpoint(self.engine)
        return LookAgain.from_bundle(self.engine, limits=limits, **options)


def ask(
    model: LookAgain,
    images: Sequence[ImageSource],
    prompt: str,
    max_tokens: int | None,
    *,
    default: int,
) -> tuple[Prompt, int]:
    """The tokenised question, and how many tokens its answer may have.

    `max_tokens` as the user gave it; else `default`, or what the context has left. Raises
    InputError.
    """
    try:
        request = model.prompt(list(images), prompt, max_tokens=max_tokens or 1)
    except InputError as error:
        if error.name != "E_CONTEXT_LENGTH":
            raise
        lower = "" if max_tokens is None else "lower --max-tokens, "
        raise InputError(
            f"{str(error).splitlines()[0]}\n{lower}shorten the text or send smaller images",
            name=error.name,
        ) from None
    return request, min(default, model.room(request)) if max_tokens is None else max_tokens


def shipped() -> Path:
    """The checkpoint that comes with the package."""
    if not (SHIPPED / "config.json").is_file():
        raise MachineError(
            f"{SHIPPED}: the shipped checkpoint is not there\n"
            "install la-trt again, or name a model with --engine DIR",
            name="E_INSTALLATION",
        )
    return SHIPPED


def cache_directory() -> Path:
    """Where built bundles are kept: `$XDG_CACHE_HOME/la-trt`, by default `~/.cache/la-trt`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(root) if os.path.isabs(root) else Path("~/.cache").expanduser()
    except RuntimeError:
        raise MachineError(
            "there is no home directory to keep built models in\nset XDG_CACHE_HOME to a directory"
        ) from None
    return base / "la-trt"


def shipped_bundle(*, rebuild: bool = False) -> Path:
    """The bundle of the shipped checkpoint in the cache, built if it is not there yet.

    Its name holds la-trt's version and a hash of the checkpoint, so that neither can go stale.
    """
    from build_engines.build import build

    path = cache_directory() / f"tiny-{la_trt.__version__}-{_digest(shipped())[:12]}"
    if path.is_dir() and not rebuild:
        return path
    deadline = time.monotonic() + _WAIT_FOR_OTHER_BUILD_S
    with progress_bar("building the shipped model once") as progress:
        while True:
            try:
                build(shipped(), path, progress=progress)
            except MachineError as error:
                # Another process is building the same bundle: wait for it, then use it.
                if error.name == "E_WRITE":
                    raise _unwritable_cache(error) from error.__cause__
                if error.name != "E_LOCKED" or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
                if not path.is_dir():
                    continue
            return path


def _unwritable_cache(error: MachineError) -> MachineError:
    return MachineError(
        f"{str(error).splitlines()[0]}\n"
        "set XDG_CACHE_HOME to a directory that can be written, or name a bundle with --engine DIR",
        name=error.name,
    )


def _open_shipped(limits: Limits | None, options: dict[str, Any]) -> LookAgain:
    from la_trt.api import LookAgain

    path = shipped_bundle()
    try:
        return LookAgain.from_bundle(path, limits=limits, **options)
    except BundleError as error:
        note(f"la-trt: the cached bundle is damaged ({error.name}), building it again")
        return LookAgain.from_bundle(shipped_bundle(rebuild=True), limits=limits, **options)


def _digest(directory: Path) -> str:
    """The sha256 of the names and contents of a directory's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if p.is_file()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _refuse_checkpoint(path: Path) -> None:
    if (path / "config.json").is_file() and not (path / "bundle.json").exists():
        raise BundleError(
            f"{path}: a checkpoint, not a bundle\n{_how_to_build(path)}, or run it with --ckpt",
            name="E_NOT_A_BUNDLE",
        )


def _how_to_build(ckpt: Path) -> str:
    return f"build it first: la-trt build --ckpt {ckpt} --output DIR"
