"""TensorRT as it is installed: `tensorrt` or `tensorrt_rtx`, and our plugin library.

The two have nearly one Python API; what differs is here, so that nothing else asks which it is.
Nothing in this module touches a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from la_trt.errors import MachineError, UsageError

RUNTIMES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
PLUGIN_LIBRARY = Path(__file__).parent.parent / "_tensorrt_plugins.so"
PLUGIN_NAMES = ("VisualAttention", "VisualAttentionOfCodes", "CausalAttention")
PLUGIN_NAMESPACE = "lookagain"
_RTX_ALIAS = "_tensorrt_rtx_alias.so"
_HOW_TO_BUILD = "build it with make plugins (needs nvcc, cmake and the TensorRT headers)"


@dataclass(frozen=True, slots=True)
class TensorRT:
    """An imported runtime. `name`: a key of RUNTIMES; `version` as the package says it."""

    name: str
    module: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    def sm_targets(self) -> tuple[int, ...]:
        """Compute capabilities that can be built for without such a GPU; empty: only the GPU's."""
        names = getattr(self.module, "ComputeCapability", None)
        if names is None:
            return ()
        found = [n[2:] for n in names.__members__ if n.startswith("SM")]
        return tuple(sorted(int(n) for n in found if n.isdigit()))


@dataclass(frozen=True, slots=True)
class PluginLibrary:
    """Our plugin library on disk, and the sha256 of its bytes."""

    path: Path
    sha256: str


@cache
def load_tensorrt(name: str = "auto") -> TensorRT:
    """The installed runtime of that name, or the first there is.

    Raises UsageError for another name, MachineError (E_NO_TENSORRT) where it is not installed.
    """
    if name not in ("auto", *RUNTIMES):
        raise UsageError(f"runtime: expected auto or one of {tuple(RUNTIMES)}, got {name!r}")
    for key in RUNTIMES if name == "auto" else (name,):
        for module in RUNTIMES[key]:
            try:
                return TensorRT(key, import_module(module))
            except ImportError:
                continue
    what = "TensorRT" if name == "auto" else name
    raise MachineError(
        f"{what} is not installed\ninstall la-trt[tensorrt] (GeForce and RTX GPUs), or "
        "cuda-bindings and, from NVIDIA's package index, tensorrt (data centre GPUs)",
        name="E_NO_TENSORRT",
    )


def plugin_library(path: Path | None = None) -> PluginLibrary:
    """The library at `path`, by default the one installed with la-trt.

    Raises MachineError (E_PLUGIN) where there is none.
    """
    path = PLUGIN_LIBRARY if path is None else Path(path)
    try:
        with path.open("rb") as file:
            return PluginLibrary(path, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise MachineError(
            f"{path}: no plugin library ({error.strerror})\n{_HOW_TO_BUILD}", name="E_PLUGIN"
        ) from None


def register_plugins(trt: TensorRT, library: PluginLibrary) -> None:
    """Load the library and check that it registers our plugins. Raises MachineError (E_PLUGIN).

    The registry belongs to the process; a second call with the same library does nothing.
    """
    registry = trt.module.get_plugin_registry()
    if _missing(registry):
        try:
            registry.load_library(str(library.path.resolve()))
        except Exception as error:
            raise MachineError(
                f"{library.path}: {trt.name} {trt.version} cannot load it ({error})\n"
                f"{_HOW_TO_BUILD}",
                name="E_PLUGIN",
            ) from None
    if missing := _missing(registry):
        raise MachineError(
            f"{library.path}: plugin {missing[0]!r} is not in it\n{_HOW_TO_BUILD}", name="E_PLUGIN"
        )


def name_rtx_for_parser(trt: TensorRT, library: PluginLibrary) -> None:
    """Give libtensorrt_rtx.so.1 the name that TensorRT-RTX's ONNX parser opens it by.

    The Python wheel ships the library without that name, and the parser ends the process where
    it finds none. Raises MachineError (E_PLUGIN): the alias lies beside the plugin library.
    """
    if not trt.is_rtx:
        return
    alias = library.path.parent / _RTX_ALIAS
    try:
        ctypes.CDLL(str(alias), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MachineError(
            f"{alias}: cannot be loaded ({error})\n{_HOW_TO_BUILD}", name="E_PLUGIN"
        ) from None


def _missing(registry: Any) -> list[str]:
    found = {
        c.name for c in registry.all_creators_recursive if c.plugin_namespace == PLUGIN_NAMESPACE
    }
    return [name for name in PLUGIN_NAMES if name not in found]
