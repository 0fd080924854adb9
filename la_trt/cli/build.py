"""`la-trt build`: a checkpoint becomes an engine bundle."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from la_trt.cli.app import debug_option
from la_trt.cli.options import PATH
from la_trt.cli.source import cache_directory
from la_trt.cli.terminal import ProgressCallback, progress_bar
from la_trt.errors import UsageError


@click.command(name="build")
@click.option(
    "--ckpt",
    type=PATH,
    required=True,
    metavar="DIR",
    help="Hugging Face directory of a Qwen2.5-VL checkpoint.",
)
@click.option(
    "--output",
    type=PATH,
    required=True,
    metavar="DIR",
    help="Bundle to write, all or nothing; an older bundle there is replaced.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnx", "native", "tensorrt"]),
    default="onnx",
    help="onnx: graphs for ONNX Runtime and weights for the native CPU engine, on any machine. "
    "native: those weights alone, built in a fraction of the time and not run to check them. "
    "tensorrt: engines for the GPUs named with --sm.",
)
@click.option(
    "--quant",
    type=click.Choice(["none", "int8", "int4", "fp8"]),
    default="none",
    help="Weights of the decoder's linear layers; none: float32, or --dtype. fp8: TensorRT alone.",
)
@click.option(
    "--block-size",
    type=click.Choice(["16", "32", "64", "128", "256"]),
    help="Weights that share one scale when quantised (TensorRT: int4 alone). 128 and 256: the "
    "native engine rounds activations in groups of 128 as well, and is faster.  "
    "[default: 32, with tensorrt 128]",
)
@click.option(
    "--sm",
    "sms",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="NN",
    help="Compute capability to build for, 89 for 8.9; may be given several times. TensorRT alone.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp16", "bf16"]),
    help="Weights that are not quantised. tensorrt: activations too; bf16 from SM 80. native: "
    "bf16, with --quant none.  [default: with tensorrt fp16, else float32]",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(["int8", "fp8"]),
    help="KV cache as codes with a scale for each row. TensorRT alone (the native engine takes its "
    "--kv-dtype where it runs).  [default: --dtype]",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Sequences that one step may have. TensorRT alone.  [default: 8]",
)
@click.option(
    "--max-model-len",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of context, at most the checkpoint's.  [default: the checkpoint's]",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pixels to which larger images are scaled down.  [default: the checkpoint's]",
)
@click.option(
    "--min-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pixels to which smaller images are scaled up.  [default: the checkpoint's]",
)
@click.option(
    "--triton",
    type=PATH,
    metavar="DIR",
    help="Also write a model repository of Triton Inference Server there: a model called as "
    "--output, with a copy of the bundle.",
)
@debug_option
def command(
    ckpt: Path,
    output: Path,
    backend: str,
    quant: str,
    block_size: str | None,
    sms: tuple[int, ...],
    dtype: str | None,
    kv_dtype: str | None,
    max_batch: int | None,
    max_model_len: int | None,
    max_pixels: int | None,
    min_pixels: int | None,
    triton: Path | None,
) -> None:
    """Write an engine bundle from a checkpoint.

    The bundle holds ONNX graphs, weights for the CPU engine or engines for TensorRT, tokenizer and
    template, and a list of every file with its sha256. No torch is needed, and no GPU where
    TensorRT-RTX is installed.
    """
    _refuse_block_size(backend, quant, block_size)
    if triton is not None:
        from build_engines.triton.repository import check_repository

        check_repository(triton, output)
    started = time.perf_counter()
    limits = {"max_model_len": max_model_len, "max_pixels": max_pixels, "min_pixels": min_pixels}
    with progress_bar("building") as progress:
        if backend == "tensorrt":
            given = {
                "dtype": dtype,
                "kv_dtype": kv_dtype,
                "max_batch": max_batch,
                "block_size": _number(block_size),
            }
            _build_tensorrt(ckpt, output, quant, sms, given, limits, progress)
        else:
            _refuse_tensorrt_options(sms=sms, kv_dtype=kv_dtype, max_batch=max_batch)
            _refuse_dtype(backend, quant, dtype)
            options = {
                "block_size": _number(block_size) or 32,
                "dtype": "float32" if dtype is None else "bfloat16",
                "graphs": backend == "onnx",
            }
            _build_cpu(ckpt, output, quant, {**options, **limits}, progress)
    seconds = time.perf_counter() - started
    size = sum(p.stat().st_size for p in output.rglob("*") if p.is_file())
    click.echo(f"{output}: bundle of {size / 2**20:.1f} MiB, quant {quant}, in {seconds:.1f} s")
    if triton is not None:
        from build_engines.triton.repository import write_repository

        click.echo(f"{write_repository(output, triton, backend=backend)}: model for Triton")


def _build_cpu(
    ckpt: Path,
    output: Path,
    quant: Any,
    options: Mapping[str, Any],
    progress: ProgressCallback | None,
) -> None:
    from build_engines.build import build

    build(ckpt, output, quant=quant, progress=progress, **options)


def _build_tensorrt(
    ckpt: Path,
    output: Path,
    quant: str,
    sms: tuple[int, ...],
    given: Mapping[str, Any],
    limits: Mapping[str, int | None],
    progress: ProgressCallback | None,
) -> None:
    from build_engines.tensorrt.bundle import TensorRTOptions, build_tensorrt

    if not sms:
        raise UsageError("--backend tensorrt needs the GPUs to build for\ngive --sm 89, say")
    kind: Any = quant
    options = TensorRTOptions(
        sms=sms,
        quant=kind,
        timing_cache=cache_directory() / "timing",
        **{name: value for name, value in given.items() if value is not None},
    )
    build_tensorrt(ckpt, output, options, progress=progress, **limits)


def _refuse_tensorrt_options(**given: Any) -> None:
    for name, value in given.items():
        if value:
            flag = {"sms": "--sm"}.get(name, f"--{name.replace('_', '-')}")
            later = ", or give it to what runs the bundle" if name == "kv_dtype" else ""
            raise UsageError(f"{flag} is for TensorRT engines\nadd --backend tensorrt{later}")


def _refuse_dtype(backend: str, quant: str, dtype: str | None) -> None:
    if dtype is None:
        return
    if backend == "onnx":
        raise UsageError(
            "--dtype is for TensorRT engines and the native one\nadd --backend tensorrt or native"
        )
    if dtype != "bf16":
        raise UsageError(f"--dtype {dtype}: the native engine has none\ngive --dtype bf16")
    if quant != "none":
        raise UsageError(f"--dtype has no effect on --quant {quant}\nleave one of them out")


def _refuse_block_size(backend: str, quant: str, block_size: str | None) -> None:
    takers = ("int4",) if backend == "tensorrt" else ("int8", "int4")
    if block_size is not None and quant not in takers:
        raise UsageError(
            f"--block-size has no effect on --quant {quant}\nadd --quant {' or '.join(takers)}"
        )


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
