"""A bundle: one directory with everything an engine runs, every file listed with its sha256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import la_trt
from la_trt.config import ModelConfig
from la_trt.errors import BundleError, MachineError
from la_trt.files.atomic import atomic_directory
from la_trt.files.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    REBUILD,
    BundleLimits,
    FileEntry,
    Manifest,
    check_file_name,
    parse_manifest,
)
from la_trt.files.strict_json import show

__all__ = ["Bundle", "BundleLimits", "BundleWriter", "Manifest", "open_bundle", "write_bundle"]

Progress = Callable[[int, int], None]
_PIECE_BYTES = 1 << 20
_MAX_REPLACED = 5  # times that a build may replace the bundle while it is opened
NATIVE_WEIGHTS = "native.safetensors"
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle: every file listed, present, of its size and (verified) of its sha256."""

    path: Path
    manifest: Manifest

    @property
    def config(self) -> ModelConfig:
        return self.manifest.config

    @property
    def tags(self) -> Mapping[str, int]:
        return self.manifest.tags

    @property
    def limits(self) -> BundleLimits:
        return self.manifest.limits

    def names(self) -> tuple[str, ...]:
        """The listed files, sorted."""
        return tuple(sorted(entry.path for entry in self.manifest.files))

    def __contains__(self, name: object) -> bool:
        return any(entry.path == name for entry in self.manifest.files)

    def file(self, name: str) -> Path:
        """The path of a listed file. Raises BundleError (E_MISSING_FILE) when not listed."""
        if name not in self:
            what, todo = "not part of this bundle", REBUILD
            if name.endswith(".onnx") and NATIVE_WEIGHTS in self:
                what += ", which was built with --backend native"
                todo = f"run it with --backend native, or {REBUILD}"
            raise BundleError(f"{self.path / name}: {what}\n{todo}", name="E_MISSING_FILE")
        return self.path / name


def open_bundle(
    path: str | Path, *, verify: bool = True, progress: Progress | None = None
) -> Bundle:
    """The bundle at `path`, refused with BundleError unless it is exactly what was written.

    With `verify` every file is hashed before anything but the manifest is parsed
    (`progress(done, total)` counts bytes); without it names, kinds and sizes alone are checked.
    A bundle that a build replaces in the meantime is opened again.
    """
    path = Path(path)
    with _read_errors(path):
        there = path.exists()
    if not there:
        raise BundleError(
            f"{path}: no such directory\ncheck the name, or {REBUILD}", name="E_MISSING_FILE"
        )
    for _ in range(_MAX_REPLACED):
        with _read_errors(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _open(path, verify, progress)
        except BundleError:
            if not _was_replaced(descriptor, path):
                raise
        finally:
            os.close(descriptor)
    raise BundleError(f"{path}: replaced again and again\nwait for the builds", name="E_BUSY")


def _was_replaced(descriptor: int, path: Path) -> bool:
    """Whether another directory stands at `path` now; the open one's inode is not reused."""
    try:
        return not os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _open(path: Path, verify: bool, progress: Progress | None) -> Bundle:
    if not path.is_dir():
        raise BundleError(f"{path}: not a bundle directory\n{REBUILD}", name="E_MISSING_FILE")
    manifest = parse_manifest(_read_manifest(path), where=str(path / MANIFEST))
    _check_listing(path, {entry.path for entry in manifest.files})
    total = sum(entry.size for entry in manifest.files)
    done = 0
    for entry in manifest.files:
        with _open_entry(path, entry.path, entry.size) as descriptor:
            if not verify:
                continue
            digest = hashlib.sha256()
            for piece in _pieces(descriptor):
                digest.update(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
        if digest.hexdigest() != entry.sha256:
            raise BundleError(
                f"{path / entry.path}: sha256 differs from bundle.json\n{REBUILD}",
                name="E_HASH",
            )
    return Bundle(path, manifest)


class BundleWriter:
    """The staged files of a bundle that is being built; made by `write_bundle`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str) -> Path:
        """Where to write the file `name`; its directory exists. Whatever is there at the end
        becomes part of the bundle.
        """
        problem = check_file_name(name)
        if problem:
            raise ValueError(f"bundle file {name!r}: {problem}")
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add_file(self, name: str, source: Path) -> Path:
        """Copy the content of `source` (links followed, modes not kept) into the bundle."""
        path = self.path(name)
        with _disk_errors(path):
            shutil.copyfile(source, path)
        return path

    def add_bytes(self, name: str, data: bytes) -> Path:
        """Write `data` into the bundle."""
        path = self.path(name)
        with _disk_errors(path):
            path.write_bytes(data)
        return path


@contextlib.contextmanager
def write_bundle(
    path: str | Path,
    *,
    config: ModelConfig,
    tags: Mapping[str, int],
    limits: BundleLimits,
    quant: str,
    request: Mapping[str, Any],
    progress: Progress | None = None,
) -> Iterator[BundleWriter]:
    """A BundleWriter whose files become the bundle at `path` when the block ends well.

    At the end every staged file is hashed and listed, `bundle.json` written last, all made
    durable, and an older bundle at `path` exchanged in one step. `request` is plain JSON: what
    the build was asked for. Raises MachineError as `atomic_directory`.
    """
    with atomic_directory(path, marker=MANIFEST) as staging:
        yield BundleWriter(staging)
        with _disk_errors(Path(path)):
            files = tuple(_hash_staged(staging, progress))
            manifest = Manifest(
                la_trt_version=la_trt.__version__,
                config=config,
                tags=tags,
                limits=limits,
                quant=quant,
                request=request,
                files=files,
            )
            data = manifest.render()
            parse_manifest(data, where=str(Path(path) / MANIFEST))
            (staging / MANIFEST).write_bytes(data)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise MachineError(
            f"{path}: cannot be written ({problem.strerror or problem})\n"
            "free space there, or choose another output",
            name="E_WRITE",
        ) from problem


def _hash_staged(staging: Path, progress: Progress | None) -> Iterator[FileEntry]:
    names = _walk(staging)
    total = sum((staging / name).stat().st_size for name in names)
    done = 0
    for name in names:
        digest = hashlib.sha256()
        size = 0
        with _open_entry(staging, name, None) as descriptor:
            for piece in _pieces(descriptor):
                digest.update(piece)
                size += len(piece)
                if progress is not None:
                    progress(done + size, total)
        done += size
        yield FileEntry(name, size, digest.hexdigest())


def _walk(root: Path) -> list[str]:
    names: list[str] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        for entry in os.scandir(root / prefix):
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{name}/")
            else:
                names.append(name)
    return sorted(names)


def _read_manifest(path: Path) -> bytes:
    with _open_entry(path, MANIFEST, None) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{path / MANIFEST}: {size} bytes, the limit is {MAX_MANIFEST_BYTES}\n{REBUILD}",
                name="E_MANIFEST",
            )
        return b"".join(_pieces(descriptor))


def _check_listing(path: Path, listed: set[str]) -> None:
    """Refuse anything in the directory that is not a listed file or on the way to one."""
    parents = {str(parent) for name in listed for parent in Path(name).parents}
    pending = [""]
    while pending:
        prefix = pending.pop()
        with _read_errors(path / prefix), os.scandir(path / prefix) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if entry.is_symlink():
                    raise BundleError(
                        f"{path}/{_plain(name)}: a symbolic link\n{REBUILD}", name="E_LINK"
                    )
                if entry.is_dir(follow_symlinks=False) and name in parents:
                    pending.append(f"{name}/")
                elif name not in listed and name != MANIFEST:
                    raise BundleError(
                        f"{path}/{_plain(name)}: not listed in bundle.json\n{REBUILD}",
                        name="E_UNLISTED_FILE",
                    )


def _plain(name: str) -> str:
    """The name as it is where that can do no harm, else safe to print."""
    return show(name) if check_file_name(name) else name


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file\n{REBUILD}", name="E_MISSING_FILE") from None
    except OSError as problem:
        raise BundleError(
            f"{path}: cannot be read ({problem.strerror})\ncheck its permissions, or {REBUILD}",
            name="E_UNREADABLE_FILE",
        ) from None


@contextlib.contextmanager
def _open_entry(root: Path, name: str, size: int | None) -> Iterator[int]:
    """A descriptor of a regular, unlinked file of `size` bytes; BundleError otherwise."""
    path = root / name
    with _read_errors(path):
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            raise BundleError(f"{path}: a symbolic link\n{REBUILD}", name="E_LINK")
        if not stat.S_ISREG(mode):
            raise BundleError(f"{path}: not a regular file\n{REBUILD}", name="E_SPECIAL_FILE")
        descriptor = os.open(path, _OPEN_FLAGS)
    try:
        status = os.fstat(descriptor)
        if status.st_nlink > 1:
            raise BundleError(f"{path}: a hard link\n{REBUILD}", name="E_LINK")
        if size is not None and status.st_size != size:
            raise BundleError(
                f"{path}: {status.st_size} bytes, bundle.json says {size}\n{REBUILD}",
                name="E_SIZE",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _pieces(descriptor: int) -> Iterator[bytes]:
    while piece := os.read(descriptor, _PIECE_BYTES):
        yield piece
