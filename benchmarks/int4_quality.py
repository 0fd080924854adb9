"""What int4 costs on LookWorld answers: rounding to nearest against searched scales.

    python -m benchmarks.int4_quality [CKPT] [--batches 12] [--block-size 32]

Every matrix of the decoder in int4, the vision tower in int8, as a bundle has them, each method
put back into the torch model: the error of the weights, and the loss of the right answers'
tokens in nats, teacher-forced on questions that training never drew. Activations stay float,
so this is the cost of the weights alone. Ends with one JSON line.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import publish
from build_engines.quantize import quantise_blocks, search_scales
from la_trt.model.vlm import QwenVL
from la_trt.model.weights import load_model
from la_trt.processor.prompt import Processor
from train.coldstart import batch_loss, training_world
from train.questions import QuestionBatches

CHECKPOINT = Path(__file__).parent.parent / "la_trt" / "assets" / "tiny"
SCENES, QUESTIONS, SEED = 8, 3, 987_654
Method = Callable[[NDArray[np.float32], int], NDArray[np.float32]]


def nearest(weight_NK: NDArray[np.float32], block_size: int, bits: int = 4) -> NDArray[np.float32]:
    """Codes of `bits`, the largest value of a block at -8 in int4, the rest rounded to nearest."""
    return _restored(*quantise_blocks(weight_NK, bits, block_size), block_size)


def searched(weight_NK: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """int4 with the scale of each block searched for the least squared error."""
    return _restored(*search_scales(weight_NK, block_size), block_size)


METHODS: dict[str, Method] = {"nearest": nearest, "searched": searched}


def _restored(
    q_NK: NDArray[np.int8], scale: NDArray[np.float32], block_size: int
) -> NDArray[np.float32]:
    width = q_NK.shape[1]
    return np.asarray(q_NK * np.repeat(scale, block_size, axis=1)[:, :width], np.float32)


def put_back(model: QwenVL, method: Method | None, block_size: int) -> float:
    """Nothing but the relative squared error; the model's matrices are replaced."""
    error = norm = 0.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if method is None or parameter.dim() < 2:
                continue
            weight = parameter.detach().numpy().reshape(len(parameter), -1).copy()
            if name.startswith(("visual.", "model.visual.")):
                new = nearest(weight, block_size, bits=8)
            else:
                new = method(weight, block_size)
                error += float(((new - weight) ** 2).sum())
                norm += float((weight**2).sum())
            parameter.copy_(torch.from_numpy(new).view_as(parameter))
    return error / norm if norm else 0.0


def draw(ckpt: Path, batches: int) -> list[Any]:
    """Batches of questions and right answers that training never drew."""
    source = QuestionBatches(
        Processor.from_pretrained(ckpt).vocabulary,
        seed=SEED,
        scenes=SCENES,
        questions=QUESTIONS,
        world=training_world(error_rate=0.0),
        reattention="copy",
        reflect=True,
    )
    return [batch for batch, _ in zip(source, range(batches), strict=False)]


def answer_losses(model: QwenVL, drawn: list[Any]) -> list[float]:
    """Nats a token of the answers, batch by batch."""
    losses = []
    for batch in drawn:
        batch["num_branches"] = torch.tensor(QUESTIONS)
        with torch.no_grad():
            losses.append(float(batch_loss(model, None, batch, dense=0.0)[0]))
    return losses


@click.command(help=__doc__)
@click.argument("ckpt", type=click.Path(exists=True, path_type=Path), default=CHECKPOINT)
@click.option("--batches", default=12, show_default=True, help=f"of {SCENES * QUESTIONS} answers")
@click.option("--block-size", default=32, show_default=True)
def main(ckpt: Path, batches: int, block_size: int) -> None:
    drawn = draw(ckpt, batches)
    result: dict[str, dict[str, float]] = {}
    losses: dict[str, list[float]] = {}
    for name, method in {"float32": None, **METHODS}.items():
        model = load_model(ckpt).eval()
        error = put_back(model, method, block_size)
        losses[name] = answer_losses(model, drawn)
        result[name] = {"weight_error": error, "nats": statistics.mean(losses[name])}
    for name in METHODS:
        more = np.subtract(losses[name], losses["float32"])
        result[name]["more_nats"] = float(more.mean())
        result[name]["standard_error"] = float(more.std(ddof=1) / len(more) ** 0.5)
    answers = batches * SCENES * QUESTIONS
    lines = [
        f"{answers} answers of fresh scenes, blocks of {block_size}, the decoder in int4.",
        "",
        "| weights | relative squared error | nats a token | more than float32 |",
        "| --- | --- | --- | --- |",
    ]
    for name, r in result.items():
        more = f"{r['more_nats']:.4f} +- {r['standard_error']:.4f}" if "more_nats" in r else ""
        lines.append(f"| {name} | {r['weight_error']:.5f} | {r['nats']:.4f} | {more} |")
    record = {"methods": result, "answers": answers}
    publish("int4_quality", record, "\n".join(lines))


if __name__ == "__main__":
    main()
