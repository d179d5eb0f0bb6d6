"""Answers known in advance: codes = factors, 0, noise; closed forms; quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, spearmanr

import metrics
from metrics.unsupervised import one_to_one

SIZES = (2, 3, 4)
GRID = np.indices(SIZES).reshape(3, -1).T
FACTORS = np.tile(GRID, (50, 1))  # each combination 50 times: factors are exactly independent


def test_codes_that_are_the_factors() -> None:
    assert metrics.mig(FACTORS, FACTORS).score == pytest.approx(1.0, abs=1e-12)
    assert metrics.mig(FACTORS, FACTORS).relative == pytest.approx(1.0, abs=1e-12)
    assert metrics.mig_sup(FACTORS, FACTORS).score == pytest.approx(1.0, abs=1e-12)
    assert metrics.modularity(FACTORS, FACTORS).score == pytest.approx(1.0, abs=1e-12)
    assert metrics.sap(FACTORS, FACTORS, kind="r2").score == pytest.approx(1.0, abs=1e-12)
    assert metrics.gaussian_total_correlation(FACTORS) == pytest.approx(0.0, abs=1e-12)
    assert metrics.explicitness(FACTORS, FACTORS, FACTORS, FACTORS, seed=0).score > 0.8
    tree = metrics.dci(FACTORS, FACTORS, FACTORS, FACTORS, seed=0)
    assert tree.informativeness == 1.0
    assert tree.disentanglement == pytest.approx(1.0, abs=1e-6)
    assert tree.completeness == pytest.approx(1.0, abs=1e-6)


def test_codes_that_are_zero() -> None:
    dead = np.zeros((len(FACTORS), 4), np.float32)
    assert metrics.mig(dead, FACTORS).score == 0.0
    assert metrics.modularity(dead, FACTORS).score == metrics.modularity(dead, FACTORS).active_score == 0.0
    assert metrics.sap(dead, FACTORS, kind="r2").score == 0.0
    assert metrics.explicitness(dead, FACTORS, dead, FACTORS).score == 0.5
    supervised = metrics.mig_sup(dead, FACTORS)
    assert supervised.score == 0.0
    assert "no latent" in supervised.notes[-1]
    tree = metrics.dci(dead, FACTORS, dead, FACTORS, seed=0)
    assert tree.disentanglement == tree.completeness == 0.0
    assert tree.informativeness == pytest.approx(np.mean([1 / n for n in SIZES]), abs=1e-12)
    assert metrics.gaussian_total_correlation(dead) == 0.0

    def nothing(factors: np.ndarray) -> np.ndarray:
        return np.zeros((len(factors), 4))

    pruned = metrics.factor_vae_metric(nothing, SIZES, seed=0, num_train=50, num_eval=50)
    assert pruned.score == pruned.baseline == 1 / 3
    assert pruned.pruned.all()
    assert "chance" in pruned.notes[-1]
    linear = metrics.beta_vae_metric(nothing, SIZES, seed=0, num_train=500, num_eval=500)
    assert abs(linear.score - 1 / 3) < 0.07  # 3 binomial standard deviations of 500 points


def test_mig_of_one_latent_that_knows_half_of_a_factor() -> None:
    """The latent is v // 2 of four classes: I = log 2, H = log 4."""
    factor = np.arange(400)[:, None] % 4
    result = metrics.mig((factor // 2).astype(np.float32), factor)
    assert result.score == pytest.approx(0.5, abs=1e-12)
    assert result.mutual_information[0, 0] == pytest.approx(math.log(2), abs=1e-12)
    assert result.ceiling == pytest.approx(1.0, abs=1e-12)
    assert "one latent" in result.notes[-1]


def test_modularity_of_a_latent_that_knows_two_factors_alike() -> None:
    """I = (log 2, log 2) for two of three factors: 1 - 1 / 2."""
    grid = np.indices((2, 2, 2)).reshape(3, -1).T
    factors = np.tile(grid, (10, 1))
    both = (2 * factors[:, :1] + factors[:, 1:2]).astype(np.float64)
    result = metrics.modularity(both, factors)
    assert result.score == pytest.approx(0.5, abs=1e-12)
    supervised = metrics.mig_sup(both, factors)
    assert supervised.score == pytest.approx(0.0, abs=1e-12)


def test_modularity_reports_active_latents_apart() -> None:
    codes = np.concatenate([FACTORS, np.zeros((len(FACTORS), 3))], axis=1)
    result = metrics.modularity(codes, FACTORS)
    assert result.score == pytest.approx(0.5, abs=1e-12)
    assert result.active_score == pytest.approx(1.0, abs=1e-12)


def test_mic_by_hand_and_its_baseline() -> None:
    """Latent 0 is factor 0, latent 1 is factor 1: with S = {0}, MIC is +1, -1, 0."""
    result = metrics.mic(FACTORS[:, :2], FACTORS, [0])
    np.testing.assert_allclose(result.per_factor, [1.0, -1.0, 0.0], atol=1e-12)
    assert result.score == pytest.approx(0.0, abs=1e-12)
    mask = metrics.mic(FACTORS[:, :2], FACTORS, np.array([True, False]))
    np.testing.assert_array_equal(mask.per_factor, result.per_factor)
    assert "every latent" in metrics.mic(FACTORS[:, :2], FACTORS, [0, 1]).notes[-1]


def test_mic_of_noise_is_bias_that_the_baseline_removes() -> None:
    """300 noise latents: each adds about (B - 1)(n - 1) / 2N nats of bias; corrected, nothing is left."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(8, size=2_000) for _ in range(2)], axis=1)
    codes = rng.uniform(size=(2_000, 300))
    result = metrics.mic(codes, factors, range(300))
    predicted = 300 * 19 * 7 / (2 * 2_000) / math.log(8)
    np.testing.assert_allclose(result.per_factor, predicted, rtol=0.05)
    assert np.abs(result.corrected).max() < 0.05 * predicted
    assert result.baseline.num_draws == 20
    assert result.baseline.threshold >= result.baseline.mean.max()


def test_gaussian_total_correlation_in_closed_form() -> None:
    """Two latents of correlation r: -log(1 - r^2) / 2, whatever their scale; with half precision read as float."""
    rng = np.random.default_rng(0)
    first, noise = rng.normal(size=(2, 4_000))
    codes = np.stack([first, 1e-3 * (0.6 * first + 0.8 * noise)], axis=1)
    r = np.corrcoef(codes.T)[0, 1]
    assert metrics.gaussian_total_correlation(codes) == pytest.approx(-0.5 * math.log(1 - r**2), abs=1e-12)
    shrunk = metrics.total_correlation(codes, shrink=True)
    assert 0.0 < shrunk.shrinkage < 0.1
    assert 0.0 < shrunk.score <= metrics.gaussian_total_correlation(codes)


def test_sap_discrete_of_separable_classes() -> None:
    """One latent separates two classes, the other is constant: gap 1 - 1/2. A note reports missing test rows."""
    factor = np.arange(200)[:, None] % 2
    codes = np.concatenate([10.0 * factor - 5.0, np.zeros((200, 1))], axis=1)
    result = metrics.sap(codes, factor, codes, factor, kind="discrete", ceiling=True)
    assert result.score == pytest.approx(0.5)
    assert result.ceiling == 1.0
    assert "no test rows" in metrics.sap(codes, factor).notes[0]


def test_beta_vae_metric_of_perfect_and_rotated_codes() -> None:
    def perfect(factors: np.ndarray) -> np.ndarray:
        return np.asarray(factors / (np.array(SIZES) - 1) * 2 - 1)

    result = metrics.beta_vae_metric(perfect, SIZES, seed=1, num_train=500, num_eval=300)
    assert result.score == 1.0
    assert result.num_draws == 2 * 800 * 64
    np.testing.assert_array_equal(result.per_factor, 1.0)
    tiny = metrics.beta_vae_metric(lambda f: 1e-4 * perfect(f), SIZES, seed=1, num_train=500, num_eval=300)
    scaled = metrics.beta_vae_metric(
        lambda f: 1e-4 * perfect(f), SIZES, seed=1, num_train=500, num_eval=300, standardise=True
    )
    assert tiny.score < 0.9 < scaled.score == 1.0
    assert metrics.factor_vae_metric(perfect, SIZES, seed=1, num_train=500, num_eval=300).score == 1.0


@pytest.mark.parametrize("metric", [metrics.beta_vae_metric, metrics.factor_vae_metric])
def test_each_distinct_image_is_encoded_once(metric) -> None:
    asked: list[np.ndarray] = []

    def code_of(factors: np.ndarray) -> torch.Tensor:
        asked.append(factors)
        return torch.from_numpy(factors).double()

    result = metric(code_of, (1, *SIZES), seed=0, num_train=200, num_eval=100)
    rows = np.concatenate(asked)
    assert len(np.unique(rows, axis=0)) == len(rows) == result.num_distinct == 24
    assert result.kept == (1, 2, 3)
    assert "factors [0]" in result.notes[0]
    assert metric(code_of, (1, *SIZES), seed=0, num_train=200, num_eval=100).score == result.score


def quadrature_entropy(mean: np.ndarray, std: np.ndarray) -> float:
    z = np.linspace(-12.0, 12.0, 200_001)
    density = np.mean([norm.pdf(z, m, s) for m, s in zip(mean, std, strict=True)], axis=0)
    return float(-np.trapezoid(density * np.log(np.maximum(density, 1e-300)), z))


def test_aggregate_posterior_against_quadrature() -> None:
    rng = np.random.default_rng(3)
    factor = np.arange(12)[:, None] % 3
    mean, std = factor + 0.1 * rng.normal(size=(12, 1)), rng.uniform(0.05, 0.5, size=(12, 1))
    result = metrics.aggregate_posterior_mig(mean, std**2, factor)
    whole = quadrature_entropy(mean[:, 0], std[:, 0])
    given = np.mean([quadrature_entropy(mean[factor == v], std[factor == v]) for v in range(3)])
    assert result.latent_entropy[0] == pytest.approx(whole, abs=1e-4)
    assert result.mutual_information[0, 0] == pytest.approx(whole - given, abs=1e-4)
    assert result.score == pytest.approx((whole - given) / math.log(3), abs=1e-4)


def test_aggregate_posterior_of_the_prior_knows_nothing() -> None:
    shape = (60, 2)
    result = metrics.aggregate_posterior_mig(np.zeros(shape), np.ones(shape), np.arange(60)[:, None] % 5)
    assert result.score == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(result.latent_entropy, norm.entropy(), atol=1e-6)
    # Two that hardly overlap, the second off the grid points: its width must not grow by being split between two.
    apart = metrics.aggregate_posterior_mig(np.array([[0.0], [20.06]]), np.ones((2, 1)), np.array([[0], [1]]))
    assert apart.latent_entropy[0] == pytest.approx(math.log(2) + float(norm.entropy()), abs=2e-5)
    sharp = metrics.aggregate_posterior_mig(
        np.arange(60.0)[:, None], np.full((60, 1), 1e-16), np.arange(60)[:, None] % 5
    )
    assert sharp.score == pytest.approx(1.0, abs=1e-6)
    assert "widened" in sharp.notes[0]


def test_decomposition_in_closed_form() -> None:
    """Two far, narrow posteriors: I = log 2 and q(z) is a mixture of two. Both on the diagonal: TC = log 2."""
    means, variances = np.array([[-20.0, -20.0], [20.0, 20.0]]), np.full((2, 2), 0.25)
    result = metrics.decompose_rate(means, variances, seed=0, num_draws=500)
    rate = 2 * 0.5 * (400.0 + 0.25 - 1.0 - math.log(0.25))
    assert result.rate == pytest.approx(rate, rel=1e-12)
    assert result.index_code_information == pytest.approx(math.log(2), abs=1e-9)
    assert result.total_correlation == pytest.approx(math.log(2), abs=1e-3)
    assert result.dimension_wise_kl == pytest.approx(rate - 2 * math.log(2), abs=1e-3)
    assert result.standard_error < 1e-6


def test_decomposition_of_a_collapsed_posterior_is_zero() -> None:
    result = metrics.decompose_rate(np.zeros((50, 3)), np.ones((50, 3)), seed=0, num_draws=100)
    for value in (result.rate, result.index_code_information, result.total_correlation, result.dimension_wise_kl):
        assert value == pytest.approx(0.0, abs=1e-6)


def test_one_to_one_by_hand() -> None:
    """Strengths [[1, 1], [0, 3]]: max^2 / sum of the columns is (1, 9/4), of the rows (1/2, 3)."""
    assert one_to_one(np.array([[1.0, 1.0], [0.0, 3.0]])) == pytest.approx(((1 + 9 / 4) / 2 + (1 / 2 + 3) / 2) / 2)
    assert one_to_one(np.zeros((2, 2))) == one_to_one(np.zeros((0, 3))) == 0.0


def test_udr_by_lasso_of_models_that_agree_up_to_order_sign_and_scale() -> None:
    """Uncorrelated latents, permuted: Lasso gives 1 - alpha for each match and 0 elsewhere; dead ones take no part."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(500, 4))
    latents = np.linalg.qr(raw - raw.mean(axis=0))[0]
    codes = [np.concatenate([c, rng.normal(size=(500, 1))], axis=1) for c in (latents, -latents[:, ::-1], 3 * latents)]
    result = metrics.udr(codes, [np.array([1.0, 1.0, 1.0, 1.0, 0.01])] * 3)
    assert result.kept == ((0, 1, 2, 3),) * 3
    assert result.score == pytest.approx(0.9, abs=1e-9)
    collapsed = metrics.udr(codes, [np.zeros(5)] * 3)
    assert collapsed.score == 0.0
    assert "no latent" in collapsed.notes[0]


def test_udr_by_spearman_equals_scipys() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(300, 2))
    second = np.exp(first @ rng.normal(size=(2, 2)))
    strength = [[abs(spearmanr(first[:, i], second[:, j]).statistic) for j in range(2)] for i in range(2)]
    result = metrics.udr([first, second], [np.ones(2), np.ones(2)], method="spearman")
    assert result.pairs[0, 1] == pytest.approx(one_to_one(np.array(strength)), abs=1e-12)
    np.testing.assert_allclose(result.per_model, result.pairs[0, 1], atol=1e-12)
