"""Metrics of summed counts, their bootstrap intervals, and paired comparison.

Every metric is a function of counts summed over units. Metrics over all units rest on units drawn
with replacement from all; metrics of named categories (an accuracy by category, a total of
category scores) on units drawn within each category, whose sizes are part of a benchmark's design.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CONFIDENCE = 0.95
_CHUNK_VALUES = 4_000_000  # bounds the table of draws, in numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One observation: the sum of the counts of its answers."""

    id: str
    category: str
    correct: bool
    counts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sums:
    """Counts (R,) by category and name, each summed over R resamples (or over the sample)."""

    by_category: Mapping[str, Mapping[str, Array]]

    def total(self, name: str, categories: Sequence[str] | None = None) -> Array:
        """The sum (R,) of a count over categories, by default all."""
        chosen = self.by_category if categories is None else categories
        total: Array = np.sum([self.by_category[c][name] for c in chosen], axis=0)
        return total

    def ratio(self, above: str, below: str, categories: Sequence[str] | None = None) -> Array:
        """The quotient (R,) of two sums; 0 where the lower one is 0."""
        return divide(self.total(above, categories), self.total(below, categories))


def divide(above: Array, below: Array) -> Array:
    """The quotient, 0 where `below` is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number made of sums. `scale`: what it is multiplied by in tables, 100 for percent.

    `categories`: those it rests on; None: all units alike. `needs`: a count of the questions
    without which it says nothing, such as the positives of an F1. `over`: a count of the units
    that it rests on; None: every unit of its categories.
    """

    name: str
    of: Callable[[Sums], Array]
    categories: tuple[str, ...] | None = None
    needs: str | None = None
    over: str | None = None
    scale: float = 100.0


def defined(metrics: Sequence[Metric], units: Sequence[Unit]) -> list[Metric]:
    """The metrics of whose `needs` these units have any."""

    def has(metric: Metric, unit: Unit) -> bool:
        within = metric.categories is None or unit.category in metric.categories
        return within and unit.counts[metric.needs or ""] > 0

    return [m for m in metrics if m.needs is None or any(has(m, unit) for unit in units)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A metric with the bounds of its 95 % percentile bootstrap interval; None of a single unit."""

    value: float
    low: float | None
    high: float | None
    num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """B minus A over the same units, with the bounds of its 95 % paired bootstrap interval."""

    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    num: int


def sums_of(units: Sequence[Unit]) -> Sums:
    """The sums (1,) of the sample itself."""
    return _sums(units, np.ones((1, len(units))))


@dataclass(frozen=True, slots=True)
class Resamples:
    """Sums (R,) of units drawn from all, and drawn within each category."""

    pooled: Sums
    within: Sums

    def of(self, metric: Metric) -> Array:
        """The metric (R,) over the resamples that suit it."""
        return metric.of(self.pooled if metric.categories is None else self.within)


def resample(units: Sequence[Unit], *, num_resamples: int, seed: int) -> Resamples:
    """`num_resamples` bootstrap samples of both kinds.

    Units of the same categories in the same order give the same draws whatever their counts are:
    two runs over the same units are thereby paired.
    """
    rng = np.random.default_rng([seed, 7])
    everything = np.arange(len(units))
    groups: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        groups.setdefault(unit.category, []).append(index)
    rows = max(1, _CHUNK_VALUES // max(1, len(units)))
    pooled, within = [], []
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        pooled.append(_sums(units, _weights([everything], size, rng)))
        members = [np.array(group) for group in groups.values()]
        within.append(_sums(units, _weights(members, size, rng)))
    return Resamples(_join(pooled), _join(within))


def estimate(
    units: Sequence[Unit], metrics: Sequence[Metric], *, num_resamples: int, seed: int
) -> dict[str, Estimate]:
    """Every metric with its interval, by name."""
    sample, drawn = sums_of(units), resample(units, num_resamples=num_resamples, seed=seed)
    found = {}
    for metric in metrics:
        num = _count(units, metric)
        low, high = _bounds(drawn.of(metric), num)
        value = float(metric.of(sample)[0])
        found[metric.name] = Estimate(value=value, low=low, high=high, num=num)
    return found


def paired(
    a: Sequence[Unit],
    b: Sequence[Unit],
    metrics: Sequence[Metric],
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Difference]:
    """Every metric's difference B - A, by name. The units must be the same, in the same order."""
    keys_a, keys_b = ([(u.category, u.id) for u in units] for units in (a, b))
    assert keys_a == keys_b, "paired: the runs hold different units"
    samples = sums_of(a), sums_of(b)
    drawn_a, drawn_b = (resample(u, num_resamples=num_resamples, seed=seed) for u in (a, b))
    found = {}
    for metric in metrics:
        value_a, value_b = (float(metric.of(s)[0]) for s in samples)
        num = _count(a, metric)
        low, high = _bounds(drawn_b.of(metric) - drawn_a.of(metric), num)
        found[metric.name] = Difference(
            a=value_a,
            b=value_b,
            difference=value_b - value_a,
            low=low,
            high=high,
            num=num,
        )
    return found


def mcnemar_p(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of McNemar's test: `only_a` units right in A alone.

    Twice the smaller tail of a fair binomial over the discordant units, at most 1.
    """
    discordant = only_a + only_b
    tail = term = 1
    for k in range(min(only_a, only_b)):
        term = term * (discordant - k) // (k + 1)
        tail += term
    # Whole numbers up to the one division: a run of thousands underflows nothing.
    return min(1.0, 2 * tail / (1 << discordant))


def _weights(groups: Sequence[NDArray[np.int64]], size: int, rng: np.random.Generator) -> Array:
    """How often each unit was drawn (R, U), as many as there are from every group."""
    num = sum(map(len, groups))
    weights = np.zeros((size, num))
    for members in groups:
        drawn = rng.integers(0, len(members), (size, len(members)))
        drawn += np.arange(size)[:, None] * len(members)
        counts = np.bincount(drawn.ravel(), minlength=size * len(members))
        weights[:, members] = counts.reshape(size, len(members))
    return weights


def _sums(units: Sequence[Unit], weights_RU: Array) -> Sums:
    """The weighted sums of every count, by category in order of appearance."""
    groups: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        groups.setdefault(unit.category, []).append(index)
    found = {}
    for category, members in groups.items():
        names = sorted(units[members[0]].counts)
        for i in members:
            assert sorted(units[i].counts) == names, f"{units[i].id}: counts differ from its kind"
        x_UK = np.array([[float(units[i].counts[n]) for n in names] for i in members])
        sums_RK = weights_RU[:, members] @ x_UK
        found[category] = {name: sums_RK[:, k] for k, name in enumerate(names)}
    return Sums(found)


def _join(parts: Sequence[Sums]) -> Sums:
    return Sums(
        {
            category: {
                name: np.concatenate([part.by_category[category][name] for part in parts])
                for name in counts
            }
            for category, counts in parts[0].by_category.items()
        }
    )


def _bounds(values: Array, num: int) -> tuple[float | None, float | None]:
    if num < 2:
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _count(units: Sequence[Unit], metric: Metric) -> int:
    chosen, over = metric.categories, metric.over
    within = [unit for unit in units if chosen is None or unit.category in chosen]
    return sum(over is None or unit.counts[over] > 0 for unit in within)
