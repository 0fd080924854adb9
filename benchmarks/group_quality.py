"""What groups of 128 cost on LookWorld answers, beside groups of 32: weights, and activations.

    python -m benchmarks.group_quality [CKPT] [--batches 8] [--outliers 10 --outliers 100]

The decoder in int8 or int4, the tower in int8, put back into the torch model; what meets them
rounded to int8 in groups as the native engine does it, or left as it is. The loss of the right
answers' tokens in nats, teacher-forced on questions that training never drew, beside float32's
on the same batches. Large models have a few channels far larger than others, which cost those that
share their scale; `--outliers` makes some here, by weights that undo them. Ends with one JSON line.
"""

from __future__ import annotations

import statistics
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.int4_quality import (
    CHECKPOINT,
    QUESTIONS,
    SCENES,
    answer_losses,
    draw,
    nearest,
    put_back,
)
from benchmarks.report import publish
from benchmarks.rounding import LARGEST, round_inputs
from la_trt.model.vlm import QwenVL
from la_trt.model.weights import load_model

BITS = {"int8": 8, "int4": 4}
SIZES = ((32, 0), (32, 32), (128, 0), (128, 32), (128, 128))  # of weights; activations, 0: float
CHANNELS_PER_OUTLIER, SEED = 64, 7


def grow_outliers(model: QwenVL, factor: float) -> None:
    """Some channels that the decoder's layers read become `factor` times as large.

    One in CHANNELS_PER_OUTLIER, for each norm and each MLP's product; what reads them is divided by
    `factor`, so the model computes the same. Attention's output and the head's input stay.
    """
    generator = torch.Generator().manual_seed(SEED)

    def draw_channels(num: int) -> torch.Tensor:
        return torch.randperm(num, generator=generator)[: num // CHANNELS_PER_OUTLIER]

    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for writer, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
                (mlp.up_proj, (mlp.down_proj,)),
            ):
                channels = draw_channels(len(writer.weight))
                writer.weight[channels] *= factor
                for reader in readers:
                    reader.weight[:, channels] /= factor


@click.command(help=__doc__)
@click.argument("ckpt", type=click.Path(exists=True, path_type=Path), default=CHECKPOINT)
@click.option("--batches", default=8, show_default=True, help=f"of {SCENES * QUESTIONS} answers")
@click.option(
    "--outliers",
    type=click.FloatRange(min=1, min_open=True),
    multiple=True,
    help=f"times as large, one channel in {CHANNELS_PER_OUTLIER}; may be given again",
)
def main(ckpt: Path, batches: int, outliers: tuple[float, ...]) -> None:
    drawn = draw(ckpt, batches)
    exact = answer_losses(load_model(ckpt).eval(), drawn)
    rows: list[dict[str, Any]] = []
    for outlier, (quant, bits), (weights, activations) in product(
        (1.0, *outliers), BITS.items(), SIZES
    ):
        if outlier > 1 and not activations:  # the same as without
            continue
        model = load_model(ckpt).eval()
        put_back(model, partial(nearest, bits=bits), weights)
        grow_outliers(model, outlier)
        if activations:
            round_inputs(model, decoder=LARGEST[quant], tower=LARGEST["int8"], group=activations)
        more = np.subtract(answer_losses(model, drawn), exact)
        rows.append(
            {
                "weights": quant,
                "block_size": weights,
                "activations": activations or None,
                "outliers": outlier,
                "more_nats": float(more.mean()),
                "standard_error": float(more.std(ddof=1) / len(more) ** 0.5),
            }
        )
        click.echo(f"  {rows[-1]}", err=True)
    lines = [
        f"{batches * SCENES * QUESTIONS} answers of fresh scenes; float32 has "
        f"{statistics.mean(exact):.4f} nats a token.",
        "",
        "| weights | in blocks of | activations in groups of | one channel in "
        f"{CHANNELS_PER_OUTLIER} | nats a token more than float32 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        lines.append(
            f"| {r['weights']} | {r['block_size']} | {r['activations'] or 'float32'} | "
            f"times {r['outliers']:g} | {r['more_nats']:+.5f} +- {r['standard_error']:.5f} |"
        )
    result = {"nats": statistics.mean(exact), "rows": rows}
    publish("group_quality", result, "\n".join(lines))


if __name__ == "__main__":
    main()
