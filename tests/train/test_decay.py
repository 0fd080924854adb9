"""Laws of decay: synthetic curves are recovered, the right law wins, theory has no parameter."""

from __future__ import annotations

import numpy as np
import pytest

from la_trt.errors import InputError
from la_trt.report.decay import (
    LAWS,
    Law,
    explained,
    fit_decay,
    fit_laws,
    mean_curve,
    predicted_share,
    visual_share,
)


def curve(law: Law, x: np.ndarray, scale: float, length: float, floor: float = 0.0) -> np.ndarray:
    fall = np.exp(-x / length) if law == "exponential" else length / (x + length)
    return floor + scale * fall


@pytest.mark.parametrize("num", [4, 19, 111])
@pytest.mark.parametrize("floor", [0.0, 0.07])
@pytest.mark.parametrize("law", LAWS)
def test_a_curve_is_recovered(law: Law, floor: float, num: int) -> None:
    x = np.linspace(0, 300, 2 * num)[::2]
    y = curve(law, x, 0.4, 57.0, floor)
    fit = fit_decay(x, y, law, floor=bool(floor))
    assert fit.r2 == pytest.approx(1.0, abs=1e-9)
    assert fit.length == pytest.approx(57.0, rel=1e-3)
    assert fit.scale == pytest.approx(0.4, rel=1e-3)
    assert fit.floor == pytest.approx(floor, abs=1e-4)
    np.testing.assert_allclose(curve(law, x, fit.scale, fit.length, fit.floor), y, atol=1e-5)


@pytest.mark.parametrize("law", LAWS)
def test_the_law_that_made_the_points_fits_best(law: Law) -> None:
    x = np.arange(200.0)
    noise = np.random.default_rng(3).normal(0, 0.005, 200)
    y = curve(law, x, 0.5, 40.0) + noise
    fits = fit_laws(x, y)
    other = next(name for name in LAWS if name != law)
    assert fits[law].r2 > fits[other].r2 + 0.005
    assert fits[law].length == pytest.approx(40.0, rel=0.1)
    assert 0.9 < fits[law].r2 < 1


def test_by_hand() -> None:
    """Points 4, 2, 1 at 0, 1, 2 halve each time: exp(-x / length) with length 1 / ln 2."""
    fit = fit_decay([0, 1, 2], [4, 2, 1], "exponential")
    assert (fit.scale, fit.length) == pytest.approx((4, 1 / np.log(2)), rel=1e-6)
    fit = fit_decay([0, 1, 3], [6, 3, 1.5], "hyperbolic")
    assert (fit.scale, fit.length) == pytest.approx((6, 1.0), rel=1e-6)


def test_points_that_do_not_fall() -> None:
    x = np.arange(10.0)
    for law in LAWS:
        same = fit_decay(x, np.full(10, 0.3), law)
        assert same.r2 == 0 and np.isinf(same.length)
        assert same.floor + same.scale == pytest.approx(0.3)
        rising = fit_decay(x, 0.1 + 0.01 * x, law)
        assert np.isinf(rising.length) and rising.r2 <= 0 and rising.to_json()["length"] is None
        assert rising.floor + rising.scale == pytest.approx(0.145)


def test_weights_are_repetitions() -> None:
    x, y = np.array([0.0, 5, 9, 20]), np.array([0.5, 0.3, 0.31, 0.1])
    weights = np.array([1, 4, 2, 3])
    for law in LAWS:
        weighted = fit_decay(x, y, law, weights=weights)
        repeated = fit_decay(np.repeat(x, weights), np.repeat(y, weights), law)
        assert weighted.length == pytest.approx(repeated.length, rel=1e-6)
        assert weighted.r2 == pytest.approx(repeated.r2)
        shuffled = fit_decay(x[::-1], y[::-1], law, weights=weights[::-1])
        assert shuffled.length == pytest.approx(weighted.length, rel=1e-6)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([0, 1], [1, 2]),
        ([0, 1, 2], [1, 2]),
        ([0, 1, 2], [1, 2, np.nan]),
        ([-1, 1, 2], [1, 2, 3]),
        ([5, 5, 5], [1, 2, 3]),
        ([[0, 1, 2]], [[3, 2, 1]]),
    ],
)
def test_what_cannot_be_fitted(x: list[float], y: list[float]) -> None:
    with pytest.raises(InputError):
        fit_decay(x, y, "exponential")
    with pytest.raises(InputError, match="weights"):
        fit_decay([0, 1, 2], [3, 2, 1], "exponential", weights=[0, 0, 0])


def test_theory_is_a_hyperbola_and_copies_lift_it() -> None:
    x = np.arange(0, 260.0, 13)
    share = predicted_share(64, 30, x)
    assert share[0] == 64 / 94 and share[1] == pytest.approx(64 / 107)
    fit = fit_decay(x, share, "hyperbolic")
    assert (fit.length, fit.scale) == pytest.approx((94, 64 / 94), rel=1e-5)
    assert explained(share, share) == 1 and explained(share, share.mean()) == 0
    assert explained(share, 1 - share) < 0
    again = predicted_share(64, 30, x, np.where(x > 100, 64, 0))
    assert (again[x > 100] > share[x > 100]).all() and (again[x <= 100] == share[x <= 100]).all()
    assert again[-1] == 128 / (128 + 30 + x[-1])


def test_mean_of_curves_of_different_lengths() -> None:
    curves = [[1.0, 2, 3], [3.0, 4], [5.0]]
    made = mean_curve(curves)
    assert made.at.tolist() == [0, 1, 2]
    assert made.mean.tolist() == [3, 3, 3] and made.count.tolist() == [3, 2, 1]
    assert made.error == pytest.approx([2 / np.sqrt(3), 1.0, 0.0])
    assert mean_curve(curves, min_count=2).mean.tolist() == [3, 3]
    with pytest.raises(InputError, match="no token"):
        mean_curve(curves, min_count=4)
    with pytest.raises(InputError):
        mean_curve([])


def test_share_is_the_mass_of_all_visual_tokens() -> None:
    masses = np.array([[0.1, 0.2], [0.0, 0.05], [0.3, 0.3]], np.float32)[:, ::-1]
    assert visual_share(masses) == pytest.approx([0.3, 0.05, 0.6])
