"""Write tests/embedding/golden: a small bundle, pictures, and the Python session's traces.

    python -m tests.embedding.make_golden

The C++ alone is held to these files by CTest; a test holds them to Python.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from build_engines.build import CheckpointWeights
from build_engines.native import write_native
from build_engines.progress import Progress
from la_trt.api import LookAgain
from la_trt.engines.native import WEIGHTS
from la_trt.files.bundle import BundleLimits, write_bundle
from la_trt.files.checkpoint import open_checkpoint
from la_trt.processor.features import ImageConfig
from tests.embedding.cases import requests
from tests.embedding.probe import python_trace, write_rgb
from tests.tiny import write_tiny_checkpoint

GOLDEN = Path(__file__).parent / "golden"


def write_golden_bundle(path: Path, checkpoint: Path) -> None:
    """A bundle of native float32 weights alone: it is small, and the C++ needs no graphs.

    Not int8: there the last bit of a float, which instruction sets round differently, decides now
    and then between two codes of an activation, and answers differ by more than that bit.
    """
    source = open_checkpoint(checkpoint)
    image = ImageConfig.from_directory(checkpoint)
    limits = BundleLimits(
        max_model_len=512, min_pixels=image.min_pixels, max_pixels=image.max_pixels
    )
    with write_bundle(
        path, config=source.config, tags={}, limits=limits, quant="none", request={}
    ) as bundle:
        write_native(
            bundle.path(WEIGHTS),
            source.config,
            CheckpointWeights(source),
            decoder="float32",
            tower="float32",
            block_size=32,
            progress=Progress(None, 0),
        )
        bundle.add_file("tokenizer.json", checkpoint / "tokenizer.json")
        bundle.add_bytes("preprocessor_config.json", json.dumps(image.to_dict()).encode())


def pictures() -> list[Image.Image]:
    """Two pictures of noise, so that no two visual tokens are alike."""
    rng = np.random.default_rng(0)
    shapes = ((61, 90, 3), (84, 57, 3))
    return [Image.fromarray(rng.integers(0, 256, s).astype(np.uint8)) for s in shapes]


def traces(root: Path) -> list[str]:
    """The golden lines of the bundle and pictures in `root`: a request and Python's answer."""
    model = LookAgain.from_bundle(root / "bundle", backend="native", threads=1, max_batch=1)
    tags = model.session.tags
    assert tags.reflection_open is not None and tags.reflection_close is not None
    entries = [
        {"rgb": f"{i}.rgb", "width": image.width, "height": image.height}
        for i, image in enumerate(pictures())
    ]
    lines = []
    for request in requests("bundle", entries, tags.reflection_open, tags.reflection_close):
        answer = rounded(python_trace(model, request, root))
        lines.append(json.dumps({"request": request, "answer": answer}))
    return lines


def rounded(value: Any) -> Any:
    """The same with eight significant digits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = write_tiny_checkpoint(Path(directory) / "ckpt", seed=1)
        write_golden_bundle(GOLDEN / "bundle", checkpoint)
    for i, image in enumerate(pictures()):
        write_rgb(image, GOLDEN / f"{i}.rgb")
    (GOLDEN / "traces.jsonl").write_text("\n".join(traces(GOLDEN)) + "\n")


if __name__ == "__main__":
    main()
