"""What a fleet is told: which bundle, how many replicas, and when there should be more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from la_trt.errors import UsageError
from la_trt.serve.settings import ServeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """Checked settings of a deployment.

    `engine`: a bundle, under the same path on every machine. `max_batch`: sequences that a
    replica runs at once; it takes as many requests again, so that their images are seen
    meanwhile. `target_requests`: running and queued requests a replica, above which there should
    be more replicas. `max_queued`: requests that wait at a relay for a replica, the next gets a
    429. `cpus`, `gpus`: what a replica reserves. `drain_s`: seconds that a replica which is to go
    gets for its requests.
    """

    engine: str
    backend: str = "native"
    threads: int = 1
    max_batch: int = 8
    min_replicas: int = 1
    max_replicas: int = 2
    target_requests: float = 8.0
    max_queued: int = 64
    cpus: float = 1.0
    gpus: float = 0.0
    num_relays: int = 1
    model_name: str = ""
    api_key_file: str = ""
    drain_s: float = 30.0
    scale_delay_s: float = 30.0

    def __post_init__(self) -> None:
        if not (Path(self.engine) / "bundle.json").is_file():
            raise UsageError(f"engine {self.engine!r}: no bundle\nbuild one with la-trt build")
        if self.backend not in ("onnx", "native", "tensorrt"):
            raise UsageError(f"backend {self.backend!r}: expected onnx, native or tensorrt")
        counts = ("threads", "max_batch", "min_replicas", "max_replicas", "max_queued")
        for name in (*counts, "num_relays"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("target_requests", "scale_delay_s"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("cpus", "gpus", "drain_s"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.min_replicas > self.max_replicas:
            raise UsageError(
                f"min_replicas {self.min_replicas}: more than max_replicas {self.max_replicas}"
            )

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> FleetSettings:
        """The settings in a Serve file's `args`. Raises UsageError for unknown or wrong ones."""
        kinds = {field.name: type(field.default) for field in fields(cls)} | {"engine": str}
        given: dict[str, Any] = {}
        for name, value in args.items():
            if name not in kinds:
                raise UsageError(f"unknown setting {name!r}, known are {', '.join(kinds)}")
            kind = kinds[name]
            good = isinstance(value, (int, float) if kind is float else kind)
            if not good or isinstance(value, bool):
                raise UsageError(f"{name}: expected {kind.__name__}, got {value!r}")
            given[name] = kind(value)
        if "engine" not in given:
            raise UsageError("engine is missing\nname a bundle")
        return cls(**given)

    def serve_settings(self) -> ServeSettings:
        """Those of the server that every replica is. Raises UsageError."""
        return ServeSettings(
            model_name=self.model_name or Path(self.engine).resolve().name,
            # The relay bounds what waits; a replica never has to refuse.
            max_waiting=2 * self.max_batch,
            drain_s=self.drain_s,
        )

    def api_keys(self) -> tuple[str, ...]:
        """Keys that let clients in; none: everyone is let in."""
        if not self.api_key_file:
            return ()
        lines = Path(self.api_key_file).read_text(encoding="utf-8").split()
        if not lines:
            raise UsageError(f"api_key_file {self.api_key_file}: holds no key")
        return tuple(lines)
