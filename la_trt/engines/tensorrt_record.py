"""`tensorrt/engines.json`: what a bundle's TensorRT engines were built with, and for what.

A plan runs only on the TensorRT version, the compute capability and the plugin library that it
was built for; anything else is refused, with the command that builds it anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from la_trt.engines.tensorrt_library import PluginLibrary, TensorRT
from la_trt.errors import BundleError
from la_trt.files.bundle import Bundle
from la_trt.files.strict_json import parse_json

RECORD = "tensorrt/engines.json"
GRAPHS = ("vision", "decoder")
_MAX_BYTES = 1 << 20
_FORMAT = 2

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A range of shapes: for each input its smallest, likeliest and largest."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]

    def admits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether every input's shape lies within the profile."""
        return all(
            len(shape) == len(self.shapes[name][0])
            and all(
                low <= size <= high
                for size, low, high in zip(
                    shape, self.shapes[name][0], self.shapes[name][2], strict=True
                )
            )
            for name, shape in shapes.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """One plan: its graph, its compute capability (89 is 8.9), its profiles in order."""

    graph: str
    sm: int
    path: str
    profiles: tuple[Profile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """All plans of a bundle, and what they share."""

    runtime: str
    version: str
    plugin_sha256: str
    dtype: str
    kv_dtype: str
    quant: str
    max_batch: int
    prefill_chunk: int
    engines: tuple[EngineFile, ...]

    def render(self) -> bytes:
        """The JSON file."""
        body = {"format": _FORMAT, **asdict(self)}
        return json.dumps(body, indent=1).encode() + b"\n"

    def sms(self) -> tuple[int, ...]:
        """The compute capabilities built for, ascending."""
        return tuple(sorted({engine.sm for engine in self.engines}))

    def rebuild(self, sm: int | None = None) -> str:
        """The command that makes these engines anew, for `sm` if given."""
        targets = " ".join(f"--sm {s}" for s in ((sm,) if sm is not None else self.sms()))
        dtype = {"float16": "fp16", "bfloat16": "bf16"}.get(self.dtype, self.dtype)
        kv = {"int8": " --kv-dtype int8", "float8_e4m3fn": " --kv-dtype fp8"}.get(self.kv_dtype, "")
        return (
            f"rebuild: la-trt build --ckpt DIR --output DIR --backend tensorrt {targets} "
            f"--dtype {dtype} --quant {self.quant}{kv}"
        )

    def check(self, trt: TensorRT, library: PluginLibrary, *, where: Path) -> None:
        """Raises BundleError (E_ENGINE_VERSION, E_ENGINE_PLUGIN) unless all is as at the build."""
        if (trt.name, trt.version) != (self.runtime, self.version):
            raise BundleError(
                f"{where}: built with {self.runtime} {self.version}, "
                f"this is {trt.name} {trt.version}\n{self.rebuild()}",
                name="E_ENGINE_VERSION",
            )
        if library.sha256 != self.plugin_sha256:
            raise BundleError(
                f"{where}: built with plugin library {self.plugin_sha256[:12]}, "
                f"{library.path} is {library.sha256[:12]}\n{self.rebuild()}",
                name="E_ENGINE_PLUGIN",
            )

    def find(self, graph: str, sm: int, *, where: Path) -> EngineFile:
        """The plan of a graph for a GPU of compute capability `sm`. Raises BundleError (E_SM)."""
        for engine in self.engines:
            if (engine.graph, engine.sm) == (graph, sm):
                return engine
        built = ", ".join(f"SM {s}" for s in self.sms())
        raise BundleError(
            f"{where}: engines for {built}, this GPU is SM {sm}\n{self.rebuild(sm)}", name="E_SM"
        )


def read_record(bundle: Bundle) -> EngineRecord:
    """The record of a bundle. Raises BundleError (E_MISSING_FILE, E_ENGINE_RECORD)."""
    if RECORD not in bundle:
        raise BundleError(
            f"{bundle.path}: no TensorRT engines in this bundle\n"
            "build some: la-trt build --ckpt DIR --output DIR --backend tensorrt --sm SM",
            name="E_MISSING_FILE",
        )
    path = bundle.file(RECORD)
    raw = parse_json(
        path.read_bytes(),
        where=str(path),
        todo="rebuild the bundle",
        error=BundleError,
        name="E_ENGINE_RECORD",
        max_bytes=_MAX_BYTES,
    )
    try:
        record = _parse(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        _refuse(path, f"{type(problem).__name__} {problem}")
    for engine in record.engines:
        if engine.graph not in GRAPHS or engine.path not in bundle:
            _refuse(path, f"engine {engine.path!r} of {engine.graph!r} is not in the bundle")
    return record


def _parse(raw: Any) -> EngineRecord:
    names = {f.name for f in fields(EngineRecord)}
    if set(raw) != {"format", *names} or raw["format"] != _FORMAT:
        raise ValueError(f"expected format {_FORMAT} with {sorted(names)}")
    values = {name: raw[name] for name in names}
    for name in ("runtime", "version", "plugin_sha256", "dtype", "kv_dtype", "quant"):
        if not isinstance(values[name], str):
            raise TypeError(f"{name}: expected a string")
    for name in ("max_batch", "prefill_chunk"):
        if type(values[name]) is not int or values[name] < 1:
            raise TypeError(f"{name}: expected a positive integer")
    values["engines"] = tuple(_engine(e) for e in raw["engines"])
    return EngineRecord(**values)


def _engine(raw: Any) -> EngineFile:
    profiles = tuple(
        Profile(name=str(p["name"]), shapes={str(n): _range(s) for n, s in p["shapes"].items()})
        for p in raw["profiles"]
    )
    if not profiles:
        raise ValueError("an engine without a profile")
    return EngineFile(
        graph=str(raw["graph"]), sm=int(raw["sm"]), path=str(raw["path"]), profiles=profiles
    )


def _range(raw: Any) -> tuple[Shape, Shape, Shape]:
    low, likely, high = (tuple(int(size) for size in shape) for shape in raw)
    if not len(low) == len(likely) == len(high) or not all(
        0 <= a <= b <= c for a, b, c in zip(low, likely, high, strict=True)
    ):
        raise ValueError(f"a range of shapes that is none: {raw}")
    return low, likely, high


def _refuse(path: Path, what: str) -> NoReturn:
    raise BundleError(f"{path}: {what[:300]}\nrebuild the bundle", name="E_ENGINE_RECORD")
