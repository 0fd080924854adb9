"""The dials and the vocabulary of LookWorld."""

from __future__ import annotations

import math
from dataclasses import dataclass

from la_trt.errors import UsageError

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black")
SIZES = ("small", "large")
USUAL_COLOUR = {"circle": "red", "square": "blue", "triangle": "green", "star": "yellow"}
FAMILIES = (
    "count",
    "exist",
    "colour",
    "shape",
    "digit",
    "place",
    "relation",
    "compare",
    "sum",
    "describe",
)
CELL_PX = 28
NUM_CLASSES = 1 + len(SHAPES) * len(COLOURS) * len(SIZES)
NUM_DIGIT_CLASSES = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """How scenes are drawn and how answers are worded.

    `sizes` are (width, height) in pixels, multiples of 28 and at least 84.
    Raises: UsageError naming the field.
    """

    sizes: tuple[tuple[int, int], ...] = ((224, 224),)
    min_objects: int = 1
    max_objects: int = 10
    prior_strength: float = 0.5  # share of objects whose colour follows their shape
    inverted: bool = False  # the shape's usual colour is the one it avoids
    large_frac: float = 0.45
    digit_frac: float = 0.6  # share of large objects that carry a digit
    clutter: float = 0.0  # 0 plain background, 1 eight faint strokes
    noise_prob: float = 0.15
    jpeg_prob: float = 0.15
    blur_prob: float = 0.1
    family_weights: tuple[float, ...] = (1.0,) * len(FAMILIES)  # in the order of FAMILIES
    reasoning_length: int = 1  # 0 result, 1 the entries that matter, 2 a scan, 3 both
    error_rate: float = 0.25  # share of responses whose reasoning errs until the reflection
    caption_error_frac: float = 0.2  # share of those whose caption holds the error already

    def __post_init__(self) -> None:
        for size in self.sizes:
            if not isinstance(size, tuple) or [type(side) for side in size] != [int, int]:
                raise UsageError(
                    f"world config sizes: expected whole numbers (width, height), got {size!r}"
                )
            width, height = size
            if width % CELL_PX or height % CELL_PX or min(width, height) < 3 * CELL_PX:
                raise UsageError(
                    f"world config sizes: expected multiples of {CELL_PX} from {3 * CELL_PX} "
                    f"pixels, got {width}x{height}"
                )
        if not self.sizes:
            raise UsageError("world config sizes: expected at least one (width, height), got none")
        if not 1 <= self.min_objects <= self.max_objects <= 10:
            raise UsageError(
                "world config: expected 1 <= min_objects <= max_objects <= 10, got "
                f"{self.min_objects} and {self.max_objects}"
            )
        for name in (
            "prior_strength",
            "large_frac",
            "digit_frac",
            "clutter",
            "noise_prob",
            "jpeg_prob",
            "blur_prob",
            "error_rate",
            "caption_error_frac",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"world config {name}: expected 0..1, got {getattr(self, name)}")
        if len(self.family_weights) != len(FAMILIES) or not all(
            isinstance(weight, (int, float)) and 0 <= weight < math.inf
            for weight in self.family_weights
        ):
            raise UsageError(
                f"world config family_weights: expected {len(FAMILIES)} numbers >= 0 in the order "
                f"{', '.join(FAMILIES)}, got {self.family_weights}"
            )
        if not sum(self.family_weights):
            raise UsageError("world config family_weights: expected one above 0, got all 0")
        if self.reasoning_length not in (0, 1, 2, 3):
            raise UsageError(
                f"world config reasoning_length: expected 0, 1, 2 or 3, got {self.reasoning_length}"
            )
