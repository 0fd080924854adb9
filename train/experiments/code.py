"""The version of the code that a module runs: a hash of it and of all it imports from here."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from la_trt.errors import UsageError

PACKAGES = ("la_trt", "train", "build_engines")
# What a module runs besides Python.
COMPILED = {"la_trt.engines.native": ("csrc/bindings", "csrc/engine", "csrc/kernels/cpu")}
REPOSITORY = Path(__file__).parents[2]


def code_version(modules: Iterable[str], root: Path = REPOSITORY) -> str:
    """A sha256 of the modules and, through all their imports, of what they use of this project.

    Imports inside functions count; comments, docstrings and layout do not, so that only a change
    that could change a result makes another version. Of COMPILED modules the sources count as they
    are. Raises UsageError for an unknown module.
    """
    digest = hashlib.sha256()
    for name in sorted(closure(modules, root)):
        digest.update(f"{name}\0{_content(root, name)[0]}\0".encode())
        for folder in COMPILED.get(name, ()):
            for path in sorted(p for p in (root / folder).rglob("*") if p.is_file()):
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def closure(modules: Iterable[str], root: Path = REPOSITORY) -> set[str]:
    """The modules and all modules of this project that they import, directly or not."""
    waiting, found = list(modules), set[str]()
    for name in waiting:
        if _file(root, name) is None:
            raise UsageError(f"module {name!r}: not a module of {', '.join(PACKAGES)}")
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        parents = [name.rsplit(".", k)[0] for k in range(1, name.count(".") + 1)]
        imported = [m for m in _content(root, name)[1] if _file(root, m) is not None]
        waiting += [m for m in (*parents, *imported) if m not in found]
    return found


def _file(root: Path, name: str) -> Path | None:
    if name.split(".")[0] not in PACKAGES:
        return None
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _content(root: Path, name: str) -> tuple[str, tuple[str, ...]]:
    path = _file(root, name)
    assert path is not None, f"no module {name}"
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _read(path: Path, mtime_ns: int) -> tuple[str, tuple[str, ...]]:
    """(hash of the meaning of a file, names that it may import)."""
    tree = ast.parse(path.read_bytes())
    names = tuple(_imports(tree))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and isinstance(body, list) and body and _is_text(body[0]):
            del body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), names


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
