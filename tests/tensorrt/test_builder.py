"""What `build_plan` makes of a builder's answers: errors, timing cache, progress, Ctrl-C.

The builder is a stand-in that records what it was told; real ones are in test_plans.py.
"""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from build_engines.tensorrt.plan import build_plan, check_plan
from la_trt.engines.tensorrt_library import PLUGIN_NAMES, TensorRT
from la_trt.engines.tensorrt_record import Profile
from la_trt.errors import GateError, MachineError

PLAN = b"plan"
PHASES = [("start", "build", None, 2), ("start", "inner", "build", 9), ("step", "inner", 3)]
PHASES += [("step", "build", 0), ("finish", "inner"), ("step", "build", 1), ("finish", "build")]


class Capability(enum.Enum):
    SM80 = 80
    SM89 = 89


class Builder:
    """Says what `module.says` holds, then gives PLAN, or None after an error."""

    def __init__(self, module: Module, log: Any) -> None:
        self.module, self.log = module, log

    def create_network(self, flag: int) -> Any:
        assert flag == 1 << self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return SimpleNamespace(name="")

    def create_builder_config(self) -> Any:
        module = self.module
        made: dict[str, Any] = {"cache": b""}
        return SimpleNamespace(
            set_preview_feature=lambda feature, on: None,
            set_compute_capability=lambda sm, i: module.told.append(("sm", sm)),
            add_optimization_profile=lambda p: module.told.append(("profile", p.shapes)),
            create_timing_cache=lambda data: made.update(cache=data) or data,
            set_timing_cache=lambda data, mismatch: module.told.append(("cache", data)),
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: made["cache"] + b"+new"),
        )

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda n, *s: shapes.update({n: s}))

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        for severity, message in self.module.says:
            self.log.log(severity, message)
        monitor = config.progress_monitor
        for what, *args in PHASES:
            if what == "start":
                monitor.phase_start(*args)
            elif what == "finish":
                monitor.phase_finish(*args)
            elif not monitor.step_complete(*args):
                return None
        return None if self.module.says else PLAN


class Module:
    """Stands for `tensorrt`: just what `build_plan` uses."""

    __version__ = "0.0.fake"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03=1)
    ProfilingVerbosity = SimpleNamespace(DETAILED=1)
    ComputeCapability = Capability
    ILogger = type("ILogger", (), {"ERROR": 1, "__init__": lambda self: None})
    IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})

    def __init__(self, *says: tuple[int, str]) -> None:
        self.says = says
        self.told: list[tuple[str, Any]] = []

    def Builder(self, log: Any) -> Builder:
        return Builder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return SimpleNamespace(parse=lambda data, path: True, num_errors=0)


def plan_of(module: Module, tmp_path: Path, name: str = "tensorrt", **options: Any) -> Path:
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "decoder.onnx")
    profile = Profile(name="any", shapes={"input_ids": ((1, 1), (1, 1), (1, 8))})
    output = tmp_path / "decoder.engine"
    trt = TensorRT(name, module)
    build_plan(trt, tmp_path / "decoder.onnx", output, [profile], sm=89, **options)
    return output


def test_the_builder_gets_target_and_profiles(tmp_path: Path) -> None:
    module = Module()
    assert plan_of(module, tmp_path).read_bytes() == PLAN
    shapes = {"input_ids": ((1, 1), (1, 1), (1, 8))}
    assert module.told == [("sm", Capability.SM89), ("profile", shapes)]


@pytest.mark.parametrize(
    ("says", "name", "words"),
    [
        ("Error Code 2: OutOfMemory (requested size 9)", "E_MEMORY", "--max-batch"),
        ("std::bad_alloc", "E_MEMORY", "free memory"),
        ("CUDA: out of  memory", "E_MEMORY", "decoder.onnx"),
        ("no kernel  for node 7", "E_TENSORRT", "no kernel for node 7"),
    ],
)
def test_a_failed_build_says_why(says: str, name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=words) as refused:
        plan_of(Module((1, says), (2, "only a warning")), tmp_path)
    assert refused.value.name == name and "only a warning" not in str(refused.value)
    assert not (tmp_path / "decoder.engine").exists()


def test_the_timing_cache_goes_in_and_comes_out_longer(tmp_path: Path) -> None:
    cache = tmp_path / "kept" / "sm89.cache"
    for had in (b"", b"+new"):
        module = Module()
        plan_of(module, tmp_path, timing_cache=cache)
        assert ("cache", had) in module.told
        assert cache.read_bytes() == had + b"+new"
        assert [p.name for p in cache.parent.iterdir()] == [cache.name]


def test_a_failed_build_leaves_the_timing_cache_alone(tmp_path: Path) -> None:
    cache = tmp_path / "sm89.cache"
    cache.write_bytes(b"old")
    with pytest.raises(MachineError):
        plan_of(Module((1, "no")), tmp_path, timing_cache=cache)
    assert cache.read_bytes() == b"old"


def test_tensorrt_rtx_has_no_timing_cache(tmp_path: Path) -> None:
    module = Module()
    plan_of(module, tmp_path, "tensorrt_rtx", timing_cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert [what for what, _ in module.told] == ["sm", "profile"]


def test_progress_follows_the_outermost_phase(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    plan_of(Module(), tmp_path, stage="decoder", progress=lambda *args: seen.append(args))
    assert seen == [("decoder", done, 2) for done in (0, 1, 2, 2)]


def test_ctrl_c_stops_the_builder(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan_of(Module(), tmp_path, progress=interrupt)
    assert not (tmp_path / "decoder.engine").exists()


def test_a_plan_without_plugins_or_too_large_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_bytes(PLUGIN_NAMES[0].encode() * 2)
    size = plan.stat().st_size
    check_plan(plan, num_plugins=2, max_bytes=size)
    with pytest.raises(GateError, match="2 of 3"):
        check_plan(plan, num_plugins=3, max_bytes=size)
    with pytest.raises(GateError, match=f"at most {size - 1}"):
        check_plan(plan, num_plugins=2, max_bytes=size - 1)
