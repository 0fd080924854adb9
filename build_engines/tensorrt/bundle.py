"""Checkpoint to a bundle of TensorRT engines: vision and decoder, for each kind of GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import la_trt
from build_engines.build import (
    CheckpointWeights,
    add_processor_files,
    bundle_limits,
    check_options,
    hashing,
    image_config,
    open_source,
    single_tags,
)
from build_engines.decoder import write_decoder
from build_engines.layers import Dtype, Target
from build_engines.progress import Progress, ProgressCallback
from build_engines.quantize import Quant
from build_engines.tensorrt.plan import build_plan, check_plan
from build_engines.tensorrt.profiles import decoder_profiles, vision_profiles
from build_engines.vision import write_vision
from la_trt.config import ModelConfig
from la_trt.engines.tensorrt_library import (
    TensorRT,
    load_tensorrt,
    name_rtx_for_parser,
    plugin_library,
    register_plugins,
)
from la_trt.engines.tensorrt_record import RECORD, EngineFile, EngineRecord, Profile
from la_trt.errors import CheckpointError, MachineError, UsageError
from la_trt.files.bundle import BundleWriter, write_bundle

KERNEL_SMS = (75, 80, 86, 89, 90, 120)  # what csrc/kernels/cuda is compiled for
KERNEL_HEAD_DIMS = (64, 80, 128)
FP8_FROM_SM = 89
BF16_FROM_SM = INT4_FROM_SM = 80
DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
KV_DTYPES = {"int8": "int8", "fp8": "float8_e4m3fn"}
_PLAN_OVERHEAD_BYTES = 64 << 20
_MOST_OF_WEIGHTS = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRTOptions:
    """What engines are built for. `sms`: compute capabilities, 89 being 8.9.

    `kv_dtype`: of the KV cache, `int8` or `fp8`; None: `dtype`.
    `max_batch`: sequences of one step; `prefill_chunk`: tokens of one prefill step. `plugins`:
    the plugin library, by default la-trt's. `timing_cache`: a directory that may be kept.
    """

    sms: tuple[int, ...]
    dtype: str = "fp16"
    quant: Quant = "none"
    kv_dtype: str | None = None
    block_size: int = 128
    max_batch: int = 8
    prefill_chunk: int = 512
    runtime: str = "auto"
    plugins: Path | None = None
    timing_cache: Path | None = None

    @property
    def types(self) -> dict[str, str]:
        """`dtype` and `kv_dtype` by their numpy names, as the bindings take them."""
        dtype = DTYPES[self.dtype]
        return {"dtype": dtype, "kv_dtype": KV_DTYPES.get(self.kv_dtype or "", dtype)}

    def __post_init__(self) -> None:
        check_options(self.quant, self.block_size, quants=get_args(Quant))
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype: expected one of {tuple(DTYPES)}, got {self.dtype!r}")
        if self.kv_dtype not in (None, *KV_DTYPES):
            raise UsageError(f"kv_dtype: expected one of {tuple(KV_DTYPES)}, got {self.kv_dtype!r}")
        if not self.sms or len(set(self.sms)) != len(self.sms):
            raise UsageError(f"sm: expected one or more, each once, got {list(self.sms)}")
        for sm in self.sms:
            if sm not in KERNEL_SMS:
                names = ", ".join(map(str, KERNEL_SMS))
                raise UsageError(
                    f"sm: la-trt's kernels are compiled for {names}, not for {sm}\n"
                    "use --backend onnx on such a GPU or machine",
                    name="E_SM",
                )
            for used, what, least, instead in (
                (self.quant == "fp8", "quant fp8", FP8_FROM_SM, "int8 or int4"),
                (self.quant == "int4", "quant int4", INT4_FROM_SM, "int8"),
                (self.dtype == "bf16", "dtype bf16", BF16_FROM_SM, "fp16"),
            ):
                if used and sm < least:
                    raise UsageError(
                        f"{what} needs SM {least} or newer, got {sm}\nuse {instead}", name="E_SM"
                    )
        for name in ("max_batch", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: expected at least 1, got {getattr(self, name)}")


def build_tensorrt(
    ckpt: Path,
    output: Path,
    options: TensorRTOptions,
    *,
    max_model_len: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """The bundle at `output`, all or nothing: engines of `ckpt`, tokenizer, manifest.

    Needs disk for the graphs beside the engines while it runs, and memory for about three copies
    of the weights in `dtype`. Raises UsageError, CheckpointError, MachineError (E_NO_TENSORRT,
    E_PLUGIN, E_SM, E_MEMORY, E_TENSORRT), GateError (E_SELF_CHECK).
    """
    trt = load_tensorrt(options.runtime)
    _check_targets(trt, options.sms)
    library = plugin_library(options.plugins)
    register_plugins(trt, library)
    name_rtx_for_parser(trt, library)
    source = open_source(ckpt, progress)
    config = source.config
    _check_model(config, options)
    image = image_config(ckpt, config.vision.patch_size, min_pixels, max_pixels)
    limits = bundle_limits(source, image, max_model_len)
    request = {
        "backend": "tensorrt",
        "sm": list(options.sms),
        "dtype": options.dtype,
        "quant": options.quant,
        "kv_dtype": options.kv_dtype,
        "block_size": options.block_size,
        "max_batch": options.max_batch,
        "prefill_chunk": options.prefill_chunk,
        "max_model_len": max_model_len,
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
    }
    profiles = {
        "vision": vision_profiles(config, max_pixels=limits.max_pixels),
        "decoder": decoder_profiles(
            config,
            max_batch=options.max_batch,
            max_len=limits.max_model_len,
            chunk=options.prefill_chunk,
            quant=options.quant,
            kv_dtype=options.types["kv_dtype"],
        ),
    }
    with write_bundle(
        output,
        config=config,
        tags=single_tags(source),
        limits=limits,
        quant=options.quant,
        request=request,
        progress=hashing(progress),
    ) as bundle:
        weights = CheckpointWeights(source)
        plans = _build(bundle, config, weights, trt, options, profiles, progress)
        record = EngineRecord(
            runtime=trt.name,
            version=trt.version,
            plugin_sha256=library.sha256,
            **options.types,
            quant=options.quant,
            max_batch=options.max_batch,
            prefill_chunk=options.prefill_chunk,
            engines=tuple(plans),
        )
        bundle.add_bytes(RECORD, record.render())
        add_processor_files(bundle, source, image)


def write_graph(
    path: Path,
    graph: str,
    config: ModelConfig,
    weights: Any,
    options: TensorRTOptions,
    count: Progress,
) -> None:
    """`vision` or `decoder` as TensorRT gets it. The tower's weights are never quantised: its
    products are bound by arithmetic, which fp16 weights suit best.
    """
    dtype: Dtype = options.types["dtype"]  # type: ignore[assignment]
    write = write_vision if graph == "vision" else write_decoder
    write(
        path,
        config,
        weights,
        quant="none" if graph == "vision" else options.quant,
        block_size=options.block_size,
        progress=count,
        target=Target(dtype=dtype, portable=True, kv_dtype=options.types["kv_dtype"]),
    )


def _build(
    bundle: BundleWriter,
    config: ModelConfig,
    weights: Any,
    trt: TensorRT,
    options: TensorRTOptions,
    profiles: dict[str, tuple[Profile, ...]],
    progress: ProgressCallback | None,
) -> list[EngineFile]:
    plans = []
    sizes = {"vision": config.vision.depth, "decoder": config.text.num_hidden_layers}
    for graph, num_layers in sizes.items():
        onnx = bundle.path(f"tensorrt/{graph}.onnx")
        count = Progress(progress, num_layers + 1)
        count.begin(f"{graph} graph")
        write_graph(onnx, graph, config, weights, options, count)
        data = onnx.with_name(f"{onnx.name}.data")
        for sm in options.sms:
            name = f"tensorrt/sm{sm}/{graph}.engine"
            build_plan(
                trt,
                onnx,
                bundle.path(name),
                profiles[graph],
                sm=sm,
                timing_cache=_timing_cache(trt, options, sm),
                progress=progress,
                stage=f"{graph} engine, SM {sm}",
            )
            check_plan(
                bundle.path(name),
                num_plugins=num_layers if graph == "decoder" else 0,
                max_bytes=int(data.stat().st_size * _MOST_OF_WEIGHTS) + _PLAN_OVERHEAD_BYTES,
            )
            plans.append(EngineFile(graph=graph, sm=sm, path=name, profiles=profiles[graph]))
        onnx.unlink()
        data.unlink()
    return plans


def _timing_cache(trt: TensorRT, options: TensorRTOptions, sm: int) -> Path | None:
    if options.timing_cache is None:
        return None
    name = f"{trt.name}-{trt.version}-sm{sm}-{la_trt.__version__}.timing"
    return options.timing_cache / name


def _check_targets(trt: TensorRT, sms: Sequence[int]) -> None:
    targets = trt.sm_targets()
    for sm in sms:
        if targets and sm not in targets:
            names = ", ".join(str(t) for t in targets if t in KERNEL_SMS)
            raise MachineError(
                f"{trt.name} {trt.version} builds no engines for SM {sm}, only for {names}\n"
                "choose one of them with --sm, or install the tensorrt of data centre GPUs",
                name="E_SM",
            )


def _check_model(config: ModelConfig, options: TensorRTOptions) -> None:
    head_dim = config.text.head_dim
    if head_dim not in KERNEL_HEAD_DIMS:
        raise CheckpointError(
            f"config.json: head_dim {head_dim}, the CUDA kernels know {KERNEL_HEAD_DIMS}\n"
            "use --backend onnx",
            name="E_HEAD_DIM",
        )
    width = config.text.hidden_size
    if options.quant == "int4" and width % options.block_size:
        raise UsageError(
            f"block_size {options.block_size} does not divide the hidden size {width}\n"
            "choose a smaller --block-size"
        )
