"""Laws that hold for all codes and factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metrics
from metrics.discrete import bin_codes, entropy, mutual_information, prepare_labels

SIZES = (3, 4, 5)
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, num_points: int = 300, num_latents: int = 4) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Codes that know something of the factors, factors, and the generator for more."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(size, size=num_points) for size in SIZES], axis=1)
    mixing = rng.normal(size=(len(SIZES), num_latents))
    codes = factors @ mixing + rng.normal(size=(num_points, num_latents))
    return codes.astype(np.float32), factors, rng


def scores(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Every cheap score of arrays that has no scale of its own."""
    return np.array(
        [
            metrics.mig(codes, factors).score,
            metrics.modularity(codes, factors).score,
            metrics.sap(codes, factors, kind="r2").score,
            metrics.gaussian_total_correlation(codes),
            metrics.pairwise_information(codes).score,
        ]
    )


def naive_information(latent: np.ndarray, factor: np.ndarray, bins: int = 20) -> float:
    """The definition, written out: histogram edges, joint frequencies, sum of p log p / (p p)."""
    index = np.digitize(latent, np.histogram(latent, bins)[1][:-1])
    nats = 0.0
    for b in set(index.tolist()):
        for v in set(factor.tolist()):
            joint = np.mean((index == b) & (factor == v))
            if joint:
                nats += joint * math.log(joint / (np.mean(index == b) * np.mean(factor == v)))
    return nats


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_information_equals_its_definition(seed: int) -> None:
    codes, factors, _ = drawn(seed)
    ours = mutual_information(bin_codes(codes), prepare_labels(factors), 20)
    naive = [[naive_information(codes[:, d], factors[:, k]) for k in range(3)] for d in range(4)]
    np.testing.assert_allclose(ours, naive, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_packing_factors_changes_nothing(seed: int) -> None:
    """Many factors, some too large to share a table, counted together = each counted alone."""
    codes, _, rng = drawn(seed)
    factors = np.stack([rng.integers(n, size=len(codes)) for n in (2, 300, 7, 7, 7, 7, 1500, 2, 40)], axis=1)
    factors[:, 2] *= 10**12  # values far apart are relabelled
    binned = bin_codes(codes)
    together = mutual_information(binned, prepare_labels(factors), 20)
    alone = [mutual_information(binned, prepare_labels(factors[:, k : k + 1]), 20)[:, 0] for k in range(9)]
    np.testing.assert_array_equal(together, np.stack(alone, axis=1))


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_order_of_latents_and_of_points_does_not_matter(seed: int) -> None:
    codes, factors, rng = drawn(seed)
    expected, order = scores(codes, factors), rng.permutation(len(codes))
    np.testing.assert_allclose(scores(codes[:, rng.permutation(4)], factors), expected, atol=1e-9)
    np.testing.assert_allclose(scores(codes[order], factors[order]), expected, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, exponent=st.integers(-8, 8))
def test_scale_of_latents_does_not_matter(seed: int, exponent: int) -> None:
    """Powers of two change no digit; SAP R2 treats variances below 1e-12 as dead, so the scales stay above."""
    codes, factors, rng = drawn(seed)
    scale = np.float32(2.0) ** rng.integers(min(exponent, 0), max(exponent, 0) + 1, size=4)
    np.testing.assert_allclose(scores(codes * scale.astype(np.float32), factors), scores(codes, factors), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, value=st.floats(-1e6, 1e6, width=32))
def test_a_constant_latent_changes_no_mig(seed: int, value: float) -> None:
    codes, factors, _ = drawn(seed)
    more = np.concatenate([codes, np.full((len(codes), 1), value, np.float32)], axis=1)
    assert metrics.mig(more, factors).score == metrics.mig(codes, factors).score
    assert metrics.gaussian_total_correlation(more) == metrics.gaussian_total_correlation(codes)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, sign=st.sampled_from([1.0, -1.0]))
def test_a_latent_twice_leaves_no_gap(seed: int, sign: float) -> None:
    codes, factors, _ = drawn(seed)
    assert metrics.mig(np.concatenate([codes, codes], axis=1), factors).score == 0.0
    assert metrics.gaussian_total_correlation(np.concatenate([codes, sign * codes], axis=1)) == math.inf


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_bounds(seed: int) -> None:
    codes, factors, _ = drawn(seed)
    labels = prepare_labels(factors)
    information, nats = mutual_information(bin_codes(codes), labels, 20), entropy(labels)
    assert (information >= 0).all()
    assert (information <= nats + 1e-12).all()
    for score in (metrics.mig(codes, factors), metrics.modularity(codes, factors), metrics.mig_sup(codes, factors)):
        assert 0.0 <= score.score <= 1.0


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_float32_and_float64_agree(seed: int) -> None:
    """Bins: a code on an edge may move to the next bin, here of 300 points; elsewhere rounding alone."""
    codes, factors, _ = drawn(seed)
    single, double = scores(codes, factors), scores(codes.astype(np.float64), factors)
    np.testing.assert_allclose(single, double, atol=2e-2)
    np.testing.assert_allclose(single[[2, 3]], double[[2, 3]], atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, num_points=st.integers(2, 200), log_width=st.floats(-6.0, 1.0))
def test_index_code_information_is_at_most_log_n(seed: int, num_points: int, log_width: float) -> None:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(num_points, 2))
    variances = np.exp(2 * log_width + rng.normal(size=means.shape))
    result = metrics.decompose_rate(means, variances, seed=seed, num_draws=50)
    assert result.index_code_information <= math.log(num_points) + 1e-9
    assert result.ceiling == math.log(num_points)
    parts = result.index_code_information + result.total_correlation + result.dimension_wise_kl
    assert parts == pytest.approx(result.rate, abs=1e-9)
    assert (result.per_latent >= 0).all()


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_factor_vae_ignores_constants_order_and_scale(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = (rng.normal(size=(60, 4)) + np.indices(SIZES).reshape(3, -1).T @ rng.normal(size=(3, 4))).astype(np.float32)
    order = rng.permutation(4)

    def score(codes: np.ndarray, **options: float) -> float:
        def lookup(factors: np.ndarray) -> np.ndarray:
            return codes[np.ravel_multi_index(tuple(factors.T), SIZES)]

        return metrics.factor_vae_metric(lookup, SIZES, seed=seed, num_train=300, num_eval=200, **options).score

    expected = score(table)
    constant = np.full((60, 1), 0.3, np.float32)
    assert score(np.concatenate([constant, table], axis=1)) == expected
    assert score(np.concatenate([constant, table], axis=1), prune_std=0.0) == expected
    assert score(table[:, order]) == expected
    assert score(table * np.float32(0.25), prior_std=0.25) == expected


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_covariance_distance_equals_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    means, variances = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 4)), rng.gamma(1.0, size=(30, 4))
    covariance = np.cov(means, rowvar=False, ddof=0)
    naive = np.mean([np.linalg.norm(np.diag(v) - covariance) for v in variances])
    result = metrics.covariance_distance(means, variances)
    assert result.score == pytest.approx(naive, rel=1e-12)
    assert result.per_sqrt_dim == pytest.approx(naive / 2.0, rel=1e-12)
    assert result.offdiagonal == pytest.approx(np.linalg.norm(covariance - np.diag(np.diag(covariance))), rel=1e-12)
