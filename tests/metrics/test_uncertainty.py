"""Intervals, chance levels and biases of scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

import metrics

SIZES = (3, 5)
FEW_BATCHES = {"num_train": 300, "num_eval": 100, "batch_size": 8}


def noisy_copies(num_points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Factor k, kept with probability .8 in latent k and .4 in latent 2 + k, else a random value: known information."""
    factors = np.stack([rng.integers(n, size=num_points) for n in SIZES], axis=1)
    latents = [
        np.where(rng.random(num_points) < keep, factors[:, k], rng.integers(SIZES[k], size=num_points))
        for keep in (0.8, 0.4)
        for k in range(2)
    ]
    return np.stack(latents, axis=1).astype(np.float64), factors


def exact_share(size: int, keep: float) -> float:
    """I / H of a factor of ``size`` values and its copy."""
    joint = np.full((size, size), (1.0 - keep) / size**2) + np.eye(size) * keep / size
    return float((joint * np.log(joint * size**2)).sum() / math.log(size))


KEEPS = np.array([0.8, 0.4])
TRUE_WEAK_MCC = math.sqrt(KEEPS @ np.linalg.solve([[1.0, 0.32], [0.32, 1.0]], KEEPS))  # R of both copies together
TRUE_MIG = float(np.mean([exact_share(n, 0.8) - exact_share(n, 0.4) for n in SIZES]))


def test_the_interval_covers_the_known_value() -> None:
    """40 draws, nominal 95 %; docs/metrics/uncertainty.md has 400 draws."""
    rng = np.random.default_rng(0)
    found = [
        metrics.with_uncertainty(metrics.mig, *noisy_copies(400, rng), num_resamples=40, num_shuffles=1, seed=i)
        for i in range(40)
    ]
    hits = sum(u.interval[0] <= TRUE_MIG <= u.interval[1] for u in found)
    assert hits >= 34
    assert np.mean([u.corrected for u in found]) == pytest.approx(TRUE_MIG, abs=0.015)


def test_noise_is_at_chance_and_its_bias_is_seen() -> None:
    rng = np.random.default_rng(1)
    codes, factors = rng.normal(size=(300, 1)), rng.integers(20, size=(300, 1))
    found = metrics.with_uncertainty(metrics.mig, codes, factors, num_resamples=60, num_shuffles=60)
    assert found.score > 0.1
    assert found.chance == pytest.approx(found.score, abs=0.03)
    assert found.chance < found.chance_high
    assert "too high" in found.bias_note


def test_it_is_reproducible_and_keeps_the_result_of_the_score() -> None:
    codes, factors = noisy_copies(300, np.random.default_rng(2))
    first, again, other = (
        metrics.with_uncertainty(metrics.mcc, codes, factors, num_resamples=20, seed=seed, correlation="spearman")
        for seed in (3, 3, 4)
    )
    assert metrics.to_plain(first) == metrics.to_plain(again)
    assert first.interval != other.interval
    assert first.score == metrics.mcc(codes, factors, correlation="spearman").score
    assert first.result.correlation == "spearman"
    low, high = first.interval
    assert 0.0 <= low < high <= 1.0
    assert (first.num_points, first.num_resamples, first.num_shuffles) == (300, 20, 50)


def test_every_kind_of_score() -> None:
    """A score that needs test rows, one of codes alone, a plain function, and factors by name."""
    codes, factors = noisy_copies(200, np.random.default_rng(4))
    few = {"num_resamples": 4, "num_shuffles": 4}
    read = metrics.with_uncertainty(metrics.explicitness, codes, factors, **few)
    assert read.result.num_train == read.result.num_test == 100
    assert read.chance == pytest.approx(0.5, abs=0.1)
    alone = metrics.with_uncertainty(metrics.total_correlation, codes, **few)
    assert alone.score > alone.chance_high
    mean = metrics.with_uncertainty(lambda codes, factors: codes.mean(), codes, {"a": factors[:, 0]}, **few)
    assert mean.score == codes.mean()


def test_a_score_that_never_moves_is_a_point() -> None:
    grid = np.tile(np.arange(4)[:, None], (50, 1))
    found = metrics.with_uncertainty(metrics.mcc, grid, grid, num_resamples=5)
    assert found.interval == pytest.approx((1.0, 1.0))


def test_what_has_no_interval_is_refused() -> None:
    codes, factors = noisy_copies(40, np.random.default_rng(5))
    with pytest.raises(ValueError, match="at least 16"):
        metrics.with_uncertainty(metrics.mig, codes[:10], factors[:10])
    with pytest.raises(ValueError, match="confidence=2"):
        metrics.with_uncertainty(metrics.mig, codes, factors, confidence=2)
    with pytest.raises(ValueError, match="score is inf"):
        metrics.with_uncertainty(metrics.total_correlation, np.repeat(codes[:, :1], 2, axis=1))


def test_few_halves_make_wider_intervals_than_many() -> None:
    """Student's quantile: 2 halves tell next to nothing of the spread."""
    codes, factors = noisy_copies(400, np.random.default_rng(6))
    few = [
        metrics.with_uncertainty(metrics.mcc, codes, factors, num_resamples=2, num_shuffles=1, seed=s)
        for s in range(10)
    ]
    many = metrics.with_uncertainty(metrics.mcc, codes, factors, num_resamples=60, num_shuffles=1)
    ends = [u.interval for u in few if u.covers]  # two halves may agree by luck, far from all rows
    assert len(ends) >= 8
    width = np.median([high - low for low, high in ends])
    assert width > 2 * (many.interval[1] - many.interval[0])


def test_the_luck_of_one_split_is_no_bias() -> None:
    """Weak MCC is fitted on half of the rows: its value on one split moved the interval away from the limit."""
    rng, hits = np.random.default_rng(7), 0
    for seed in range(40):
        codes, factors = noisy_copies(200, rng)
        found = metrics.with_uncertainty(
            metrics.mcc, codes, factors, mapping="linear", num_resamples=20, num_shuffles=1, seed=seed
        )
        hits += found.interval[0] <= TRUE_WEAK_MCC <= found.interval[1]
    assert hits >= 36


@dataclass(frozen=True)
class HalfMean:
    """Result of a score that is computed on the half of the rows that it was not fitted on."""

    score: float
    num_train: int


def half_mean(codes: np.ndarray, *, seed: int) -> HalfMean:
    rows = np.random.default_rng(seed).permutation(len(codes))[: len(codes) // 2]
    return HalfMean(float(codes[rows].mean()), len(codes) - len(rows))


def test_a_score_of_one_split_is_centred_on_ten() -> None:
    """The mean of normal rows, whose limit is 0: intervals cover it, and their centres vary less than the score."""
    rng = np.random.default_rng(11)
    found = [
        metrics.with_uncertainty(half_mean, rng.normal(size=(60, 1)), num_resamples=20, num_shuffles=1)
        for _ in range(400)
    ]
    spread = {name: np.std([getattr(u, name) for u in found]) for name in ("score", "corrected")}
    assert spread["corrected"] < 0.95 * spread["score"]
    assert np.sqrt(np.mean([u.standard_error**2 for u in found])) == pytest.approx(spread["corrected"], rel=0.1)
    ends = np.array([u.interval for u in found if u.covers])
    assert len(ends) > 390
    assert 0.92 <= np.mean((ends[:, 0] <= 0.0) & (ends[:, 1] >= 0.0)) <= 0.98


def test_the_luck_of_drawn_batches_is_no_bias() -> None:
    """The bias is that of the mean over ten draws of batches, so two seeds of one code agree about the limit."""
    codes, factors = noisy_copies(300, np.random.default_rng(9))
    found = [
        metrics.with_uncertainty(
            metrics.factor_vae_of_rows, codes, factors, num_resamples=20, num_shuffles=1, seed=s, **FEW_BATCHES
        )
        for s in range(30)
    ]
    spread = {name: np.std([getattr(u, name) for u in found]) for name in ("score", "corrected")}
    assert spread["corrected"] < 1.3 * spread["score"]  # twice the score less a mean of halves would give 2.0


def noisy_mixtures(num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents that each sum two factors and noise: their information about factors is not 0, so no score is extreme."""
    rng = np.random.default_rng(10)
    factors = np.stack([rng.integers(n, size=num_points) for n in SIZES], axis=1)
    values = factors / (np.array(SIZES) - 1.0)
    return values @ np.array([[1.0, 0.3], [0.2, 1.0]]) + rng.uniform(0.0, 0.5, (num_points, 2)), factors


@pytest.mark.parametrize(
    "score",
    [
        *(metrics.irs, metrics.infomec, metrics.med, metrics.modularity, metrics.mlp_r2),
        partial(metrics.sap, kind="discrete"),
    ],
)
def test_scores_whose_intervals_do_not_cover_say_so(score: Callable[..., Any]) -> None:
    """In place of an interval there are the spread over halves, the chance level, and the reason in one line."""
    found = metrics.with_uncertainty(score, *noisy_mixtures(100), num_resamples=4, num_shuffles=2)
    assert not found.covers
    low, high = found.interval
    assert low <= high
    assert found.halves_std > 0.0
    assert found.chance <= found.chance_high
    assert found.bias_note.startswith("no interval: ")
    assert f"{found.halves_std:.2g}" in found.bias_note
    assert "\n" not in found.bias_note
    assert not any("few for an interval" in note for note in found.notes)


def test_the_other_kind_of_sap_has_an_interval() -> None:
    found = metrics.with_uncertainty(metrics.sap, *noisy_mixtures(100), num_resamples=4, num_shuffles=2, kind="r2")
    assert found.covers
    assert found.interval[0] <= found.corrected <= found.interval[1]


def test_a_score_of_strong_bias_has_no_interval() -> None:
    """MIG of latents that know nothing, at few rows: its bias is many standard errors."""
    rng = np.random.default_rng(8)
    codes, factors = rng.normal(size=(300, 1)), rng.integers(20, size=(300, 1))
    found = metrics.with_uncertainty(metrics.mig, codes, factors, num_resamples=20, num_shuffles=2)
    assert not found.covers
    assert "too high" in found.bias_note
    assert "more rows" in found.bias_note


def test_few_rows_say_so() -> None:
    for num_points in (499, 500):
        found = metrics.with_uncertainty(metrics.mcc, *noisy_mixtures(num_points), num_resamples=4, num_shuffles=2)
        assert any(note.startswith(f"{num_points} rows") for note in found.notes) == (num_points < 500)


def test_halves_that_lose_a_factor_are_no_halves_of_the_score() -> None:
    """Two rows of 400 differ in the second factor, so a quarter of all halves lack it: there MIG is that of the first."""
    rng = np.random.default_rng(9)
    codes, factors = noisy_copies(400, rng)
    rare = np.zeros(400, dtype=np.int64)
    rare[:2] = 1
    both = np.column_stack([factors[:, 0], rare])
    seen: list[int] = []

    def counted(codes: np.ndarray, factors: Any) -> float:
        seen.append(len(metrics.mig(codes, factors).kept))
        return metrics.mig(codes, factors).score

    found = metrics.with_uncertainty(counted, codes, both, num_resamples=40, num_shuffles=2)
    assert set(seen) == {2}
    assert not found.covers
    assert "leave out factors with a rare value" in found.bias_note
    alone = metrics.with_uncertainty(metrics.mig, codes, rare[:, None], num_resamples=10, num_shuffles=2)
    assert not alone.covers
    assert metrics.with_uncertainty(metrics.mig, codes, factors, num_resamples=40, num_shuffles=2).covers
