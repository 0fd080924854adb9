"""Files and directories that appear at their public path whole, durable, or not at all.

A directory is staged beside its target as `.<name>.staging`, made durable, then exchanged with
the older one in a single system call (Linux `renameat2`, RENAME_EXCHANGE): at every moment the
public path is the complete old one or the complete new one. Where the kernel or the file system
cannot exchange, the older directory is first moved to `.<name>.previous`; this leaves a moment
of neither, which is warned about, and which the next build heals if the process died in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from la_trt.errors import MachineError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a disk without room
_DISK = (*FULL, errno.EFBIG, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def atomic_directory(path: str | Path, *, marker: str | None = None) -> Iterator[Path]:
    """A fresh staging directory that becomes `path` when the block ends without an exception.

    An existing directory at `path` is replaced, and its content deleted, only when it is empty
    or holds the file `marker` (such as "bundle.json"): a mistyped output never costs a home
    directory. Raises MachineError: E_LOCKED when another process builds the same path,
    E_OUTPUT_EXISTS, E_WRITE. What a killed process left behind is removed by the next call.
    """
    target = _target(path)
    staging = target.with_name(f".{target.name}.staging")
    previous = target.with_name(f".{target.name}.previous")
    with _lock(target):
        with write_errors(target):
            _recover(target, previous)
            _remove(staging)
            _check_replaceable(target, marker)
            os.mkdir(staging)
        try:
            with _nameless_errors(target):
                yield staging
            with write_errors(target):
                fsync_tree(staging)
                _check_replaceable(target, marker)
                _publish(staging, target, previous)
        finally:
            _clean_up(target, staging, previous)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """An open binary file that replaces `path` when the block ends without an exception.

    Of two writers at once the later one wins whole. Temporary files of killed processes are
    removed by the next call for the same path. Raises MachineError (E_WRITE).
    """
    target = _target(path)
    with write_errors(target):
        if target.is_dir():
            raise MachineError(
                f"{target}: is a directory\ngive the path of a file", name="E_OUTPUT_EXISTS"
            )
        _remove_dead_files(target)
        file, temporary = _temporary(target)
    try:
        with _nameless_errors(target), file:
            yield file
            with write_errors(target):
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, target)
                _fsync(target.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def fsync_tree(root: Path) -> None:
    """Make every file and directory under `root` durable, the deepest first."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            _fsync(Path(directory, name))
        _fsync(Path(directory))


def _target(path: str | Path) -> Path:
    target = Path(os.path.abspath(path))
    if not target.name:
        raise MachineError(f"{path}: cannot be replaced\nchoose another output", name="E_OUTPUT")
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return target


@contextlib.contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """A block that writes `target` alone. Raises MachineError (E_WRITE), which names it."""
    try:
        yield
    except OSError as problem:
        _refuse_write(target, problem)


@contextlib.contextmanager
def _nameless_errors(target: Path) -> Iterator[None]:
    """Of a block that does other things too, the disk's errors which name no file."""
    try:
        yield
    except OSError as problem:
        if problem.filename is not None or problem.errno not in _DISK:
            raise
        _refuse_write(target, problem)


def _refuse_write(target: Path, problem: OSError) -> NoReturn:
    todo = "free space there" if problem.errno in FULL else "check its permissions"
    raise MachineError(
        f"{target}: cannot be written ({problem.strerror or problem})\n"
        f"{todo}, or choose another output",
        name="E_WRITE",
    ) from problem


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Hold the one lock of a target; the lock file is gone when nobody holds it.

    The holder unlinks the file before it lets go, so whoever got the lock of a file that is no
    longer at the path tries again.
    """
    path = target.with_name(f".{target.name}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with write_errors(target):
            descriptor = os.open(path, flags, 0o644)
            if try_lock(descriptor):
                if is_at(descriptor, path):
                    break
                os.close(descriptor)
                continue
            os.close(descriptor)
        raise MachineError(
            f"{target}: another process is writing it (lock {path})\n"
            "wait for it to end, or choose another output",
            name="E_LOCKED",
        )
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Whether this process holds the lock of an open file or directory from here on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that now stands at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _check_replaceable(target: Path, marker: str | None) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise MachineError(
            f"{target}: exists and is not a directory\nremove it, or choose another output",
            name="E_OUTPUT_EXISTS",
        )
    if not target.exists() or not any(target.iterdir()):
        return
    if marker is None or not (target / marker).is_file():
        held = f"holds no {marker}" if marker else "is not empty"
        raise MachineError(
            f"{target}: exists and {held}, so it is not replaced\n"
            "remove it, or choose another output",
            name="E_OUTPUT_EXISTS",
        )


def _publish(staging: Path, target: Path, previous: Path) -> None:
    """Put `staging` at `target`; afterwards the older directory stands at `staging`, if any."""
    if not target.exists():
        os.rename(staging, target)
    elif not _exchange(staging, target):
        warnings.warn(
            f"{target}: this file system cannot exchange directories; the path is missing for "
            "a moment while it is replaced",
            RuntimeWarning,
            stacklevel=5,
        )
        os.rename(target, previous)
        os.rename(staging, target)
        os.rename(previous, staging)
    _fsync(target.parent)


def _clean_up(target: Path, staging: Path, previous: Path) -> None:
    try:
        _recover(target, previous)
        _remove(staging)
    except OSError as problem:
        warnings.warn(
            f"{staging}: left behind ({problem.strerror}); remove it by hand",
            RuntimeWarning,
            stacklevel=4,
        )


def _recover(target: Path, previous: Path) -> None:
    """Heal what a process left that died in the middle of a replacement without exchange."""
    if not os.path.lexists(previous):
        return
    if os.path.lexists(target):
        _remove(previous)
    else:
        os.rename(previous, target)
        _fsync(target.parent)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two directories in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p] * 2 + [ctypes.c_uint]
    names = os.fsencode(left), os.fsencode(right)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(right))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _temporary(target: Path) -> tuple[BinaryIO, Path]:
    """A new locked file beside `target`; the lock tells living writers from dead ones."""
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if try_lock(descriptor) and is_at(descriptor, path):
            return os.fdopen(descriptor, "wb"), path
        os.close(descriptor)


def _remove_dead_files(target: Path) -> None:
    prefix, suffix = f".{target.name}.", ".part"
    for path in target.parent.iterdir():
        token = path.name[len(prefix) : -len(suffix)]
        is_ours = path.name == f"{prefix}{token}{suffix}" and len(token) == 12
        if not is_ours:
            continue
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if try_lock(descriptor):
                    os.unlink(path)
            finally:
                os.close(descriptor)
