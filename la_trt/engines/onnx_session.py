"""ONNX Runtime sessions: opened strictly, with exactly the providers asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from la_trt.bindings import Binding
from la_trt.engines.ort import ort
from la_trt.errors import BundleError, MachineError, UsageError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# For a provider unless the caller says otherwise. TF32 would round float32 to ten bits.
DEFAULT_OPTIONS: dict[str, dict[str, str]] = {CUDA: {"device_id": "0", "use_tf32": "0"}}
INT8_ARITHMETIC = "4"
_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)"}


def check_providers(providers: Sequence[str]) -> None:
    """Raises MachineError (E_PROVIDER) for a provider that this installation lacks."""
    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            raise MachineError(
                f"execution provider {name!r} is not in this onnxruntime; available: "
                f"{', '.join(available)}\ninstall the onnxruntime build that has it",
                name="E_PROVIDER",
            )


def open_session(
    path: Path,
    inputs: Sequence[Binding],
    outputs: Sequence[Binding],
    *,
    threads: int | None,
    providers: Sequence[str],
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    optimized_path: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """An `InferenceSession` of a graph that has exactly the given bindings.

    `provider_options`: by provider, over DEFAULT_OPTIONS. Where the CPU is not among the
    `providers` no node runs there. Raises MachineError (E_PROVIDER) unless every provider is
    active with its options, BundleError (E_GRAPH) for another graph. `optimized_path`: where to
    write the graph as it runs, for inspection. `profile`: where, with the time added to the name,
    to write what every node took, once the session's `end_profiling` is called.
    """
    check_providers(providers)
    asked = _options_of(providers, provider_options or {})
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # shapes change with every step
    # As written. By default all that only the mass needs comes last, and the attention of every
    # layer is kept until then.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", INT8_ARITHMETIC)
    if CPU not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        session = ort.InferenceSession(
            path, options, providers=[(name, asked[name]) for name in providers]
        )
    except Exception as error:
        if tuple(providers) != (CPU,):
            raise MachineError(
                f"{path.name}: {', '.join(providers)} cannot run it: {_first_line(error)}\n"
                "check the provider's libraries and drivers, or ask for CPUExecutionProvider",
                name="E_PROVIDER",
            ) from error
        raise BundleError(
            f"{path}: onnxruntime {ort.__version__} refuses the graph: {_first_line(error)}\n"
            "rebuild the bundle",
            name="E_GRAPH",
        ) from error
    session.disable_fallback()
    missing = set(providers) - set(session.get_providers())
    if missing:
        raise MachineError(
            f"execution provider {sorted(missing)[0]!r} did not start\n"
            "check its libraries and drivers, or ask for CPUExecutionProvider",
            name="E_PROVIDER",
        )
    _check_options(session.get_provider_options(), asked)
    _check_bindings(path, session.get_inputs(), inputs)
    _check_bindings(path, session.get_outputs(), outputs)
    return session


def _options_of(
    providers: Sequence[str], given: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    unknown = sorted(set(given) - set(providers))
    if unknown:
        raise UsageError(
            f"provider_options: {unknown[0]!r} is not among the providers {tuple(providers)}"
        )
    return {
        name: DEFAULT_OPTIONS.get(name, {}) | {k: str(v) for k, v in given.get(name, {}).items()}
        for name in providers
    }


def _check_options(
    active: Mapping[str, Mapping[str, str]], asked: Mapping[str, Mapping[str, str]]
) -> None:
    for name, options in asked.items():
        for key, value in options.items():
            got = active[name].get(key)
            if str(got) != value:
                raise MachineError(
                    f"execution provider {name!r}: {key} is {got!r}, not {value!r}\n"
                    "leave the option out",
                    name="E_PROVIDER",
                )


def _check_bindings(path: Path, found: Sequence[Any], expected: Sequence[Binding]) -> None:
    got = {arg.name: arg for arg in found}
    for binding in expected:
        arg = got.pop(binding.name, None)
        if arg is None:
            _refuse(path, f"binding {binding.name!r} is missing")
        want = _TYPES[binding.dtype]
        if arg.type != want:
            _refuse(path, f"binding {binding.name!r}: expected {want}, got {arg.type}")
        fixed = [
            (i, d) for i, d in enumerate(binding.shape) if isinstance(d, int) and i < len(arg.shape)
        ]
        if len(arg.shape) != len(binding.shape) or any(arg.shape[i] != d for i, d in fixed):
            expected_shape, got_shape = list(binding.shape), list(arg.shape)
            _refuse(path, f"binding {binding.name!r}: expected {expected_shape}, got {got_shape}")
    if got:
        _refuse(path, f"unknown binding {min(got)!r}")


def _refuse(path: Path, what: str) -> None:
    raise BundleError(f"{path}: {what}\nrebuild the bundle", name="E_GRAPH")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
