"""Reductions without labels, groups as units: known places, known gains."""

from __future__ import annotations

import math

import numpy as np
import pytest

import metrics
from metrics.reductions import as_groups, halves

SIZES = (3, 8, 8)
RNG = np.random.default_rng(0)
FACTORS = np.stack([RNG.integers(size, size=3_000) for size in SIZES], axis=1)


def place_code(factors: np.ndarray) -> np.ndarray:
    """An 8x8 channel that is 1 at the place (x, y) given by factors 1 and 2: lossless, but none of its axes is a factor."""
    code = np.zeros((len(factors), 1, 8, 8), np.float32)
    code[np.arange(len(factors)), 0, factors[:, 2], factors[:, 1]] = 1.0
    return code


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(len(FACTORS), *shape)).astype(np.float32)


def test_a_place_code_needs_its_centroid() -> None:
    groups, mig = [place_code(FACTORS)], {}
    for kind in ("flat", "pca", "moments"):
        reduced = metrics.reduce_groups(groups, kind, dim=None if kind == "flat" else 10, seed=0)
        mig[kind] = metrics.mig(reduced.codes, FACTORS[reduced.rows]).score
    assert mig["flat"] < 0.02
    assert mig["pca"] < 0.1
    assert mig["moments"] == pytest.approx(2 / 3, abs=0.02)  # x and y perfectly, shape not at all


def test_moments_are_mean_and_centroid_and_points_are_split() -> None:
    reduced = metrics.reduce_groups([place_code(FACTORS)], "moments", dim=None, seed=0)
    fit, score = halves(len(FACTORS), 0)
    np.testing.assert_array_equal(reduced.rows, score)
    assert len(np.intersect1d(fit, score)) == 0
    assert len(fit) + len(score) == len(FACTORS)
    assert reduced.codes.shape == (1_500, 3)
    assert (reduced.codes[:, 0] == 0).all()  # the mean is 1/64 everywhere: constant becomes 0, not noise
    for column, factor in ((1, 1), (2, 2)):
        values = FACTORS[:, factor].astype(np.float64)
        expected = (values[score] - values[fit].mean()) / values[fit].std()
        np.testing.assert_allclose(reduced.codes[:, column], expected, atol=1e-5)
    strength = RNG.uniform(-3.0, 3.0, size=(len(FACTORS), 1, 1, 1))  # a centroid knows neither size nor sign
    moved = metrics.reduce_groups([strength * place_code(FACTORS)], "moments", dim=None, seed=0)
    np.testing.assert_allclose(moved.codes[:, 1:], reduced.codes[:, 1:], atol=1e-5)


def test_the_most_active_channels_are_kept_and_axes_too() -> None:
    groups = [0.1 * noise(3, 4, 4), FACTORS.astype(np.float32)]
    reduced = metrics.reduce_groups(groups, "pool", dim=3, seed=0)
    assert metrics.mig(reduced.codes, FACTORS[reduced.rows]).score > 0.9
    assert metrics.reduce_groups(groups, "pool", dim=None, seed=0).codes.shape[1] == 6
    short = metrics.reduce_groups(groups, "pool", dim=50, seed=0)
    assert "only 6 numbers" in short.notes[0]


def test_pca_finds_the_plane_and_is_fitted_on_the_other_half() -> None:
    plane = np.random.default_rng(2).normal(size=(2, 600))
    latent = noise(2)
    for features in (latent @ plane, (latent @ plane)[:, :20]):  # by the randomised and by the full solver
        reduced = metrics.reduce_groups([features], "pca", dim=2, seed=0)
        recovered = np.linalg.lstsq(reduced.codes, latent[reduced.rows], rcond=None)
        np.testing.assert_allclose(reduced.codes @ recovered[0], latent[reduced.rows], atol=0.2)
    moved = latent @ plane
    moved[halves(len(moved), 0)[1]] *= 100.0  # the scored half does not reach the fit
    assert metrics.reduce_groups([moved], "pca", dim=2, seed=0).codes.std() > 50.0


def test_group_information_finds_where_a_factor_lives() -> None:
    """Group 0 is noise, group 1 says factor 0, group 2 says factor 0 again and factor 1."""
    signs = np.eye(3, dtype=np.float32)[FACTORS[:, 0]] * 8.0
    groups = [noise(2, 2, 2), signs, np.concatenate([signs, FACTORS[:, 1:2] * 2.0], axis=1)]
    result = metrics.group_information(groups, FACTORS[:, :2], seed=0)
    full = result.entropy
    np.testing.assert_allclose(result.matrix[0], 0.0, atol=0.01)
    np.testing.assert_allclose(result.matrix[1:, 0], full[0], atol=0.05)
    assert result.matrix[1, 1] < 0.01
    assert result.matrix[2, 1] > 0.7 * full[1]
    assert result.per_factor[0] < 0.05 < 0.6 < result.per_factor[1]
    np.testing.assert_allclose(result.conditional_gain[1, 0], full[0], atol=0.05)
    assert result.conditional_gain[2, 0] < 0.05  # said already above
    np.testing.assert_allclose(result.conditional_gain.cumsum(axis=0), result.cumulative)
    assert (result.conditional_gain >= 0).all()
    assert any("reported as 0" in note for note in result.notes)
    scales, mic = metrics.mic_over_scales(result, [2, 2, 4])
    assert scales == (2, 4)
    np.testing.assert_allclose(mic[0], -mic[1])
    np.testing.assert_allclose(mic[1], (result.matrix[2] - result.matrix[:2].sum(axis=0)) / full)


def test_information_does_not_fall_when_noise_is_added() -> None:
    """With few points the joint probe overfits 60 numbers of noise; the information of group 0 alone still bounds it."""
    groups = [np.eye(3)[FACTORS[:200, 0]] * 8.0, noise(30)[:200], noise(60)[:200, 30:]]
    result = metrics.group_information(groups, FACTORS[:200, :1], seed=0)
    assert (result.conditional_gain >= 0).all()
    assert (result.cumulative >= result.matrix[0]).all()


def test_a_group_of_many_dims_is_bounded_after_pca() -> None:
    signs = np.eye(3, dtype=np.float32)[FACTORS[:, 0]] * 8.0
    wide = np.concatenate([signs, noise(200)], axis=1).reshape(len(FACTORS), 7, 29, 1)
    result = metrics.group_information([wide], FACTORS[:, :1], seed=0, max_features=4)
    assert 0.9 * result.entropy[0] < result.matrix[0, 0] <= result.entropy[0]


def test_a_curved_factor_needs_the_network_probe() -> None:
    """Classes alternate along a circle: no line separates them, a small network does."""
    angle = RNG.integers(8, size=2_000)
    circle = np.stack([np.cos(angle * math.pi / 4), np.sin(angle * math.pi / 4)], axis=1)
    linear = metrics.group_information([circle], angle[:, None] % 2, seed=0)
    network = metrics.group_information([circle], angle[:, None] % 2, seed=0, probe="mlp")
    assert linear.matrix[0, 0] < 0.02
    assert network.matrix[0, 0] > 0.6  # of log 2 = .693
    assert network.matrix[0, 0] <= network.entropy[0]


def test_a_class_that_training_never_saw_costs_a_finite_amount() -> None:
    factor = np.zeros((400, 1), np.int64)
    factor[:, 0] = np.arange(400) % 2
    factor[halves(400, 0)[1][0], 0] = 5
    result = metrics.group_information([factor.astype(np.float32)], factor, seed=0)
    assert np.isfinite(result.matrix).all()


@pytest.mark.parametrize("half", [0, 1])
def test_a_factor_of_one_value_in_a_half_does_not_count(half: int) -> None:
    rare = np.zeros((len(FACTORS), 1), np.int64)
    rare[halves(len(FACTORS), 0)[half][:2]] = 1
    groups = [np.eye(3)[FACTORS[:, 0]] * 8.0, noise(2)]
    alone = metrics.group_information(groups, FACTORS[:, :1], seed=0)
    beside = metrics.group_information(groups, np.concatenate([FACTORS[:, :1], rare], axis=1), seed=0)
    assert beside.score == pytest.approx(alone.score, rel=1e-6)
    assert beside.matrix.shape == (2, 2)
    assert any(note.startswith("factors [1] take a single value in one half") for note in beside.notes)
    assert metrics.group_information(groups, rare, seed=0).score == 0.0


def test_permutation_baseline_of_a_heat_map() -> None:
    def heat_map(factors: np.ndarray) -> np.ndarray:
        return metrics.information(noise(4), factors).mutual_information

    baseline = metrics.permutation_baseline(heat_map, FACTORS, seed=0)
    assert baseline.draws.shape == (20, 4, 3)
    np.testing.assert_allclose(baseline.mean[:, 1:], 19 * 7 / (2 * 3_000), rtol=0.25)
    assert baseline.mean.max() < baseline.threshold <= baseline.draws.max()
    again = metrics.permutation_baseline(heat_map, FACTORS, seed=0)
    np.testing.assert_array_equal(again.draws, baseline.draws)


def test_reduced_scores_at_equal_dimension() -> None:
    groups = [FACTORS.astype(np.float32), noise(2, 4, 4)]
    rows = metrics.reduced_scores(groups, FACTORS, seed=0, dims=(2, 3), num_shuffles=5)
    assert [(row.kind, row.dim) for row in rows] == [(k, d) for k in ("top", "pool", "moments", "pca") for d in (2, 3)]
    assert all(row.num_latents == row.dim for row in rows)
    top = rows[1]
    assert top.mig.relative > 0.95
    assert 0 < top.mig_sup_threshold < 0.1 < top.mig_sup.score
    assert top.information_threshold < 0.1
    assert all(np.isfinite(row.mig.score) for row in rows)
    plain = metrics.to_plain(rows)
    assert isinstance(plain, list)


def test_residual_means() -> None:
    np.testing.assert_allclose(metrics.residual_mean([[3.0]], [[1.0]], [[0.5]]), [[4.0]])
    with pytest.raises(ValueError, match=r"\(1, 1\), \(1, 2\) and \(1, 1\)"):
        metrics.residual_mean([[3.0]], [[1.0, 1.0]], [[0.5]])
    with pytest.raises(ValueError, match="above 0"):
        metrics.residual_mean([[3.0]], [[1.0]], [[0.0]])


def test_input_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="no groups"):
        as_groups([])
    with pytest.raises(ValueError, match=r"groups\[1\] has shape \(4, 2, 2\)"):
        as_groups([np.zeros((4, 2)), np.zeros((4, 2, 2))])
    with pytest.raises(ValueError, match=r"groups\[0\] \(4, 2\) and groups\[1\] \(5, 2\)"):
        as_groups([np.zeros((4, 2)), np.zeros((5, 2))])
    with pytest.raises(ValueError, match="choose one of top, pool, moments, pca, flat"):
        metrics.reduce_groups([np.zeros((4, 2))], "mean", seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the top group has 48 dims"):
        metrics.reduce_groups([np.zeros((4, 3, 4, 4))], "top", seed=0)
    with pytest.raises(ValueError, match="choose 'logistic' or 'mlp'"):
        metrics.group_information([FACTORS], FACTORS, seed=0, probe="svm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 points cannot be split"):
        halves(3, 0)
    with pytest.raises(ValueError, match=r"scales \(2,\)"):
        metrics.mic_over_scales(metrics.group_information([FACTORS], FACTORS, seed=0), [1, 2])
    with pytest.raises(ValueError, match="differ in their points"):
        metrics.reduced_scores([FACTORS], FACTORS[:10], seed=0)
