"""How attention to the image falls as an answer grows: curves, two laws, what theory predicts.

The paper's Theorem 3.1 bounds the visual share of a context of L_c visual, L_x prompt and L_y
generated tokens by L_c / (L_x + L_c + L_y), a hyperbola in L_y; its summary speaks of exponential
decay. Both forms are fitted with as many parameters each, so that their R^2 can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from la_trt.errors import InputError

Law = Literal["exponential", "hyperbolic"]
LAWS: tuple[Law, ...] = ("exponential", "hyperbolic")
FloatArray = NDArray[np.float64]

_GRID = 241  # of the decadic logarithm of the one parameter that is not linear
_GOLDEN = (5**0.5 - 1) / 2
_REFINEMENTS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A law fitted by least squares to `num` points.

    exponential: `floor + scale * exp(-x / length)`. hyperbolic: `floor + scale * length / (x +
    length)`. Both are `floor + scale` at 0 and fall with `length` (in the unit of x, may be inf).
    `r2`: share of the variance that is explained, 0 for points that are all alike.
    """

    law: Law
    scale: float
    length: float
    floor: float
    r2: float
    num: int

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite length is None."""
        return {
            "law": self.law,
            "scale": self.scale,
            "length": self.length if np.isfinite(self.length) else None,
            "floor": self.floor,
            "r2": self.r2,
            "num": self.num,
        }


def fit_decay(
    x: ArrayLike,
    y: ArrayLike,
    law: Law,
    *,
    weights: ArrayLike | None = None,
    floor: bool = False,
) -> Fit:
    """The best fit of a law to points (N,) at x >= 0, with a constant below it if `floor`.

    `weights` (N,) >= 0, such as the number of answers behind each point. The lengths searched
    reach from a hundredth of the smallest step of x to ten thousand times its range, or no decay
    at all. Raises: InputError for fewer points than parameters, or values that are not finite.
    """
    at, values, weight = _points(x, y, weights, 3 + floor)
    total = float((weight * (values - np.average(values, weights=weight)) ** 2).sum())
    span = float(np.ptp(at))
    steps = np.diff(np.unique(at))
    if not steps.size:
        raise InputError("fit_decay: every x is the same", name="E_FIT")

    def loss(log_length: float) -> float:
        return _linear(law, at, values, weight, 10.0**log_length, floor)[2]

    logs = np.linspace(np.log10(float(steps.min()) / 100), np.log10(span * 1e4), _GRID)
    losses = np.array([loss(float(v)) for v in logs])
    best = int(losses.argmin())
    low, high = logs[max(best - 1, 0)], logs[min(best + 1, _GRID - 1)]
    length = 10.0 ** _golden(loss, float(low), float(high))
    scale, base, error = _linear(law, at, values, weight, length, floor)
    flat = _linear(law, at, values, weight, np.inf, floor)
    if flat[2] <= error * (1 + 1e-12):
        scale, base, error, length = *flat, np.inf
    r2 = 1 - error / total if total > 1e-24 * float((weight * values**2).sum()) else 0.0
    return Fit(law=law, scale=scale, length=length, floor=base, r2=r2, num=len(at))


def fit_laws(
    x: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None, floor: bool = False
) -> dict[Law, Fit]:
    """Both laws fitted to the same points."""
    return {law: fit_decay(x, y, law, weights=weights, floor=floor) for law in LAWS}


def predicted_share(
    num_visual: float, num_prompt: float, generated: ArrayLike, injected: ArrayLike = 0
) -> FloatArray:
    """Theorems 3.1 and 3.2: the share of visual tokens after `generated` tokens.

    `num_prompt`: text tokens of the prompt, a mean over prompts may be given; `injected`: visual
    tokens put in again by then.
    """
    visual = num_visual + np.asarray(injected, np.float64)
    share: FloatArray = visual / (visual + num_prompt + np.asarray(generated, np.float64))
    return share


def explained(y: ArrayLike, predicted: ArrayLike, weights: ArrayLike | None = None) -> float:
    """R^2 of a prediction with nothing fitted: below 0 where the mean predicts better."""
    values, guess = np.asarray(y, np.float64), np.asarray(predicted, np.float64)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    total = float((weight * (values - np.average(values, weights=weight)) ** 2).sum())
    error = float((weight * (values - guess) ** 2).sum())
    return 1 - error / total if total else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The mean over answers at each generated token. All (L,): `at` from 0 on, the `mean`, its
    standard error, and the number of answers that reach so far."""

    at: FloatArray
    mean: FloatArray
    error: FloatArray
    count: FloatArray


def mean_curve(curves: Sequence[ArrayLike], min_count: int = 1) -> Curve:
    """The mean of curves of different lengths, as far as `min_count` of them reach.

    Raises: InputError where none does.
    """
    lists = [np.asarray(curve, np.float64) for curve in curves]
    longest = max((len(c) for c in lists), default=0)
    count, total, square = (np.zeros(longest) for _ in range(3))
    for curve in lists:
        count[: len(curve)] += 1
        total[: len(curve)] += curve
        square[: len(curve)] += curve**2
    keep = int((count >= max(min_count, 1)).sum())
    if keep == 0:
        raise InputError(
            f"mean_curve: no token that {min_count} of {len(lists)} answers reach", name="E_FIT"
        )
    count, mean = count[:keep], total[:keep] / count[:keep]
    spread = np.maximum(square[:keep] / count - mean**2, 0)
    error = np.sqrt(spread / np.maximum(count - 1, 1))
    return Curve(at=np.arange(keep, dtype=np.float64), mean=mean, error=error, count=count)


def visual_share(step_masses: ArrayLike) -> FloatArray:
    """The attention on all visual tokens (N,) of N generated tokens, from masses (N, M)."""
    share: FloatArray = np.asarray(step_masses, np.float64).sum(axis=1)
    return share


def _shape(law: Law, at: FloatArray, length: float) -> FloatArray:
    if np.isinf(length):
        return np.ones_like(at)
    if law == "exponential":
        falling: FloatArray = np.exp(-np.minimum(at / length, 700.0))
        return falling
    return 1 / (1 + at / length)


def _linear(
    law: Law, at: FloatArray, values: FloatArray, weight: FloatArray, length: float, floor: bool
) -> tuple[float, float, float]:
    """(scale, floor, weighted squared error) of the best fit at that length."""
    shape = _shape(law, at, length)
    if not floor:
        scale = float((weight * shape * values).sum() / (weight * shape**2).sum())
        return scale, 0.0, float((weight * (values - scale * shape) ** 2).sum())
    mean_shape, mean = np.average(shape, weights=weight), np.average(values, weights=weight)
    centred = shape - mean_shape
    spread = float((weight * centred**2).sum())
    scale = float((weight * centred * (values - mean)).sum()) / spread if spread > 1e-18 else 0.0
    base = float(mean - scale * mean_shape)
    return scale, base, float((weight * (values - base - scale * shape) ** 2).sum())


def _golden(loss: Callable[[float], float], low: float, high: float) -> float:
    """The place of the smallest loss between two bounds, by golden sections."""
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = loss(a), loss(b)
    for _ in range(_REFINEMENTS):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = loss(b)
    return (low + high) / 2


def _points(
    x: ArrayLike, y: ArrayLike, weights: ArrayLike | None, least: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    at, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    weight = np.ones_like(at) if weights is None else np.asarray(weights, np.float64)
    if at.ndim != 1 or at.shape != values.shape or at.shape != weight.shape or len(at) < least:
        raise InputError(
            f"fit_decay: expected at least {least} points, got shapes {at.shape}, {values.shape} "
            f"and {weight.shape}",
            name="E_FIT",
        )
    finite = all(np.isfinite(a).all() for a in (at, values, weight))
    if not finite or (at < 0).any() or (weight < 0).any() or not weight.sum() > 0:
        raise InputError("fit_decay: expected finite values, x and weights >= 0", name="E_FIT")
    return at, values, weight
