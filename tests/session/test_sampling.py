"""Greedy, temperature, top-k, top-p, penalty, seed: against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from la_trt.errors import UsageError
from la_trt.sampling import Sampler, SamplingParams, entropy_nats, log_partition, nucleus


def logits_of(probs: list[float]) -> np.ndarray:
    return np.log(np.array(probs, np.float64)).astype(np.float32)


def frequencies(params: SamplingParams, logits: np.ndarray, n: int = 4000) -> np.ndarray:
    sampler = Sampler(params, [])
    return np.bincount([sampler.draw(logits) for _ in range(n)], minlength=len(logits)) / n


def nucleus_by_sorting(probs: np.ndarray, top_p: float) -> list[int]:
    total, kept = 0.0, []
    for i in sorted(range(len(probs)), key=lambda i: (-probs[i], i)):
        kept.append(i)
        total += probs[i]
        if total >= top_p:
            break
    return sorted(kept)


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    sampler = Sampler(SamplingParams(), [])
    assert sampler.draw(np.array([1, 3, 3, 2], np.float32)) == 1
    assert sampler.draw(np.array([1, 3, 3, 2], np.float32), banned=(1, 2)) == 3


@pytest.mark.parametrize("size", [1, 19, 111])
def test_log_probabilities_and_entropy(size: int) -> None:
    logits = np.random.default_rng(size).normal(0, 30, size).astype(np.float32)
    probs = np.exp(logits.astype(np.float64) - logits.max())
    probs /= probs.sum()
    found = logits.astype(np.float64) - log_partition(logits)
    positive = probs > 0
    assert found[positive] == pytest.approx(np.log(probs[positive]), abs=1e-5)
    expected = -(probs[positive] * np.log(probs[positive])).sum()
    assert entropy_nats(logits) == pytest.approx(expected, abs=1e-5)


def test_numbers_at_the_edge_of_float32_stay_finite() -> None:
    logits = np.array([3.4e38, -3.4e38, 0], np.float32)
    assert float(logits[0]) - log_partition(logits) == 0
    assert float(logits[1]) - log_partition(logits) == pytest.approx(-6.8e38)
    assert entropy_nats(logits) == 0


def test_temperature_one_follows_the_distribution() -> None:
    probs = [0.5, 0.25, 0.15, 0.1]
    found = frequencies(SamplingParams(temperature=1.0), logits_of(probs))
    assert found == pytest.approx(np.array(probs), abs=0.03)


def test_temperature_sharpens() -> None:
    probs = np.array([0.5, 0.3, 0.2])
    found = frequencies(SamplingParams(temperature=0.5), logits_of(list(probs)))
    assert found == pytest.approx(probs**2 / (probs**2).sum(), abs=0.03)


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = np.array([3e38, -3e38, 2.9e38], np.float32)
    for temperature in (5e-324, 1e-30, 1e-6):
        sampler = Sampler(SamplingParams(temperature=temperature), [])
        assert {sampler.draw(logits) for _ in range(20)} == {0}


def test_top_k_keeps_the_k_best_ties_to_the_lower_index() -> None:
    probs = [0.1, 0.3, 0.2, 0.2, 0.2]
    found = frequencies(SamplingParams(temperature=1.0, top_k=3), logits_of(probs))
    assert found == pytest.approx(np.array([0, 3, 2, 2, 0]) / 7, abs=0.03)
    assert set(np.flatnonzero(frequencies(SamplingParams(temperature=9.0, top_k=1), found))) == {1}
    everything = frequencies(SamplingParams(temperature=1.0, top_k=99), logits_of(probs))
    assert everything == pytest.approx(np.array(probs), abs=0.03)


def test_top_p_keeps_the_nucleus() -> None:
    probs = [0.05, 0.5, 0.3, 0.15]
    found = frequencies(SamplingParams(temperature=1.0, top_p=0.7), logits_of(probs))
    assert found == pytest.approx(np.array([0, 5, 3, 0]) / 8, abs=0.03)
    found = frequencies(SamplingParams(temperature=1.0, top_p=1e-9), logits_of(probs))
    assert found.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("size", [1, 19, 111, 3000])
@pytest.mark.parametrize("flat", [False, True])
def test_nucleus_equals_a_full_sort(size: int, flat: bool) -> None:
    rng = np.random.default_rng(size)
    for _ in range(10):
        probs = np.ones(size) if flat else np.exp(rng.normal(0, 3, size).round(1))
        probs /= probs.sum()
        for top_p in (0.1, 0.5, 0.9, 0.999):
            assert nucleus(probs, top_p).tolist() == nucleus_by_sorting(probs, top_p)


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.05], np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=1.2), [0])
    assert sampler.draw(logits) == 1
    sampler.accept(1)
    # 2/1.2 and 1.9/1.2 remain above; with those two banned, -1 * 1.2 falls below -1.05.
    assert sampler.draw(logits) == 0
    sampler.accept(2)
    assert sampler.draw(logits, banned=(0, 1)) == 3


def test_the_same_seed_gives_the_same_tokens_and_streams_differ() -> None:
    logits = np.zeros(1000, np.float32)

    def tokens(seed: int, stream: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), [], stream)
        return [sampler.draw(logits) for _ in range(10)]

    assert tokens(1, 0) == tokens(1, 0)
    assert len({tuple(tokens(s, j)) for s in range(3) for j in range(3)}) == 9


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_tokens_never_come(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, top_p=0.9), [])
    logits = np.array([50, 0, 0], np.float32)
    assert 0 not in {sampler.draw(logits, banned=(0,)) for _ in range(200)}


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 10**400},
        {"temperature": 10**400},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("-inf")},
        {"seed": -1},
        {"seed": 1 << 63},
        {"seed": 1.0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting: dict[str, object]) -> None:
    (name,) = setting
    what = "an integer" if name in ("top_k", "seed") else "a"
    with pytest.raises(UsageError, match=f"^{name}: expected {what}"):
        SamplingParams(**setting)
