"""A bundle of the native engine's weights alone: what its benchmarks open.

python -m benchmarks.native_bundle CKPT OUTPUT [--quant int4] [--block-size 32]
"""

from __future__ import annotations

from pathlib import Path

import click

from build_engines.build import CheckpointWeights
from build_engines.native import FloatFormat, formats, write_native
from build_engines.progress import Progress
from build_engines.quantize import Quant
from la_trt.engines.native import WEIGHTS
from la_trt.files.bundle import BundleLimits, write_bundle
from la_trt.files.checkpoint import open_checkpoint
from la_trt.processor.features import ImageConfig

MAX_MODEL_LEN = 4096


def pack(
    ckpt: Path,
    output: Path,
    quant: Quant,
    block_size: int = 32,
    *,
    dtype: FloatFormat = "float32",
) -> None:
    """Write the bundle directory `output`, all or nothing; `dtype`: of quant "none"."""
    source = open_checkpoint(ckpt)
    image = ImageConfig.from_directory(ckpt)
    limits = BundleLimits(
        max_model_len=MAX_MODEL_LEN, min_pixels=image.min_pixels, max_pixels=image.max_pixels
    )
    decoder, tower = formats(quant, dtype)
    with write_bundle(
        output, config=source.config, tags={}, limits=limits, quant=quant, request={}
    ) as bundle:
        write_native(
            bundle.path(WEIGHTS),
            source.config,
            CheckpointWeights(source),
            decoder=decoder,
            tower=tower,
            block_size=block_size,
            progress=Progress(None, 0),
        )


@click.command(help=__doc__)
@click.argument("ckpt", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--quant", type=click.Choice(["none", "int8", "int4"]), default="int4")
@click.option("--block-size", default=32, show_default=True, help="Weights that share a scale.")
def main(ckpt: Path, output: Path, quant: Quant, block_size: int) -> None:
    pack(ckpt, output, quant, block_size)


if __name__ == "__main__":
    main()
