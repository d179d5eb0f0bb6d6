"""MCC, InfoMEC, IRS, JEMMIG, MED, probes, CCA, DCI-ES: other implementations' numbers, known answers, laws."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metrics
from metrics.linear import ranks
from metrics.neighbours import information_with_class, information_with_number, jittered

CASES = ("correlated", "d_more_k", "duplicated", "noisy", "one_factor", "perfect", "pure_noise", "rotated")
SIZES = (2, 3, 4)
FACTORS = np.tile(np.indices(SIZES).reshape(3, -1).T, (50, 1))  # each combination 50 times: exactly independent
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", CASES)
def test_agreement_with_other_implementations(name: str, shared: Path) -> None:
    """Closed forms to 1e-6, nearest-neighbour estimates to .02; where theirs is 0/0, ours has a value and a note."""
    folder = shared / "golden" / "metrics_modern"
    with np.load(folder / f"codes_{name}.npz", allow_pickle=False) as data:
        codes, factors = data["codes"], data["factors"]
    with np.load(folder / f"modern_{name}.npz", allow_pickle=False) as data:
        peer = {key: float(data[key]) for key in data.files}
    half = len(codes) // 2
    split = codes[:half], factors[:half], codes[half:], factors[half:]
    jemmig, med = metrics.jemmig(codes, factors), metrics.med(codes, factors)
    closed = {
        "mcc_pearson": metrics.mcc(codes, factors).score,
        "mcc_spearman": metrics.mcc(codes, factors, correlation="spearman").score,
        "linear_r2_in_sample": metrics.linear_r2(codes, factors).score,
        "linear_r2_second_half": metrics.linear_r2(*split).score,
        "cca_mean": metrics.cca(codes, factors).score,
        "jemmig_raw_nats": jemmig.nats,
        "jemmig_normalised": jemmig.score,
        "med_disentanglement": med.disentanglement,
        "med_completeness": med.completeness,
        "irs_q100": metrics.irs(codes, factors, num_shuffles=0).score,
        "irs_q99": metrics.irs(codes, factors, quantile=0.99, num_shuffles=0).score,
    }
    for key, value in closed.items():
        if math.isnan(peer[key]):
            assert value == 1.0  # one factor: any latent serves it alone
            assert any("one factor" in note for note in med.notes)
        else:
            assert value == pytest.approx(peer[key], abs=1e-6), key
    found = metrics.infomec(codes[:2000], factors[:2000], seed=0)
    assert found.explicitness == pytest.approx(peer["infoe"], abs=0.02)
    assert found.compactness == pytest.approx(peer["infoc"], abs=0.02)
    if math.isnan(peer["infom"]):
        assert 0.0 <= found.modularity <= 1.0
        assert any("know nothing" in note or "one factor" in note for note in found.notes)
    else:
        assert found.modularity == pytest.approx(peer["infom"], abs=0.02)


def test_a_code_that_is_the_factors() -> None:
    for mapping in (None, "linear", "cca"):
        assert metrics.mcc(FACTORS, FACTORS, mapping=mapping).score == pytest.approx(1.0, abs=1e-9)
    assert metrics.mcc(FACTORS, FACTORS).matching == ((0, 0), (1, 1), (2, 2))
    assert metrics.med(FACTORS, FACTORS).disentanglement == pytest.approx(1.0, abs=1e-6)
    assert metrics.irs(FACTORS, FACTORS).score == pytest.approx(1.0)
    assert metrics.linear_r2(FACTORS, FACTORS).score == pytest.approx(1.0)
    assert metrics.cca(FACTORS, FACTORS).score == pytest.approx(1.0)
    found = metrics.infomec(FACTORS, FACTORS)
    assert min(found.modularity, found.explicitness, found.compactness) > 0.95
    simple = metrics.dci_es(FACTORS, FACTORS)
    assert simple.explicitness == pytest.approx(1.0, abs=1e-6)
    assert simple.size == 1.0


def test_a_code_that_is_dead() -> None:
    """Every score is its lowest value, with no NaN and no warning."""
    dead = np.zeros((len(FACTORS), 4))
    for score in (metrics.mcc, metrics.med, metrics.irs, metrics.linear_r2, metrics.cca, metrics.infomec):
        assert score(dead, FACTORS).score == 0.0, score
    assert metrics.mcc(dead, FACTORS, mapping="cca").score == 0.0
    assert metrics.jemmig(dead, FACTORS).score == pytest.approx(
        np.mean(1.0 - np.log(SIZES) / (np.log(SIZES) + math.log(20)))
    )
    nothing = metrics.infomec(dead, FACTORS)
    assert nothing.explicitness == nothing.compactness == 0.0
    assert metrics.dci_es(dead, FACTORS).explicitness == -1.0


def test_idle_latents_do_not_spoil_infomec() -> None:
    idle = np.concatenate([FACTORS, np.ones((len(FACTORS), 3))], axis=1)
    alone, beside = metrics.infomec(FACTORS, FACTORS), metrics.infomec(idle, FACTORS)
    assert beside.modularity == pytest.approx(alone.modularity, abs=0.02)
    assert beside.compactness == pytest.approx(alone.compactness, abs=0.02)
    assert list(beside.informed) == [True] * 3 + [False] * 3


def test_jemmig_penalises_a_latent_that_knows_two_factors_and_mig_does_not() -> None:
    grid = np.indices((2, 2)).reshape(2, -1).T
    factors = np.tile(grid, (50, 1))
    both = (2 * factors[:, :1] + factors[:, 1:]).astype(float)
    assert metrics.mig(both, factors).score == pytest.approx(1.0)
    # H(z) = log 4, so H(z, v) = log 4 and the raw score is log 4 - log 2.
    assert metrics.jemmig(both, factors).nats == pytest.approx(math.log(2), abs=1e-12)
    assert metrics.jemmig(factors, factors).nats == pytest.approx(0.0, abs=1e-12)


def test_irs_of_noise_is_reported_beside_it() -> None:
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(n, size=6_000) for n in (2, 3, 5)], axis=1)
    noise = rng.normal(size=(6_000, 10))
    strict, library = metrics.irs(noise, factors), metrics.irs(noise, factors, quantile=0.99)
    assert library.score > 0.3 > strict.score
    for result in (strict, library):
        assert result.noise_level == pytest.approx(result.score, abs=0.03)


def test_probes_find_linear_and_nonlinear_information() -> None:
    rng = np.random.default_rng(0)
    source = rng.uniform(-1.0, 1.0, size=(1_500, 1))
    curved = np.concatenate([np.cos(3.0 * source), np.sin(3.0 * source)], axis=1)
    assert metrics.linear_r2(curved, source).score < 0.8
    assert metrics.mlp_r2(curved, source, seed=0).score > 0.95
    simple, hard = metrics.dci_es(source, source), metrics.dci_es(np.cos(3.0 * source), source)
    assert simple.score == pytest.approx(1.0, abs=1e-6)
    assert hard.score < 0.5
    noise = metrics.linear_r2(rng.normal(size=(200, 50)), source[:200])
    assert noise.score > 0.15 > abs(noise.adjusted) + 0.05
    assert any("too high" in note for note in noise.notes)


def test_weak_mcc_is_fitted_on_other_rows() -> None:
    """Twenty latents of noise explain 60 rows in sample, and nothing held out."""
    rng = np.random.default_rng(0)
    noise, source = rng.normal(size=(120, 20)), rng.normal(size=(120, 2))
    assert metrics.cca(noise, source).score > 0.4
    for mapping in ("linear", "cca"):
        weak = metrics.mcc(noise, source, mapping=mapping)
        assert weak.score < 0.3
        assert (weak.num_train, weak.num_points) == (60, 60)


def test_dci_with_each_regressor() -> None:
    """The score depends on the predictor: a forest looks at random latents, and so spreads importance."""
    rng = np.random.default_rng(0)
    codes = FACTORS + 0.01 * rng.normal(size=FACTORS.shape)
    rows = codes[:800], FACTORS[:800], codes[800:], FACTORS[800:]
    for regressor in ("lasso", "forest", "logistic"):
        found = metrics.dci(*rows, seed=0, regressor=regressor)
        assert found.disentanglement > (0.6 if regressor == "forest" else 0.9), regressor
        assert found.informativeness > 0.85, regressor
        assert found.baseline < 0.5
    numbers = metrics.dci(codes[:800], codes[:800] + 0.5, codes[800:], codes[800:] + 0.5, seed=0, regressor="lasso")
    assert numbers.informativeness > 0.95
    assert numbers.baseline == 0.0
    with pytest.raises(ValueError, match="choose one of trees, lasso, forest, logistic"):
        metrics.dci(*rows, seed=0, regressor="svm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whole numbers"):
        metrics.dci(rows[0], rows[1] + 0.5, rows[2], rows[3] + 0.5, seed=0, regressor="logistic")


def test_majority_baseline_of_dci() -> None:
    rng = np.random.default_rng(0)
    factors = (rng.random((400, 1)) < 0.1).astype(int)
    found = metrics.dci(rng.normal(size=(200, 2)), factors[:200], rng.normal(size=(200, 2)), factors[200:], seed=0)
    assert found.majority[0] == pytest.approx(1.0 - factors[200:].mean())


def test_neighbour_information_in_closed_form() -> None:
    """A pair of Gaussians with correlation r shares -log(1 - r^2) / 2 nats; two well separated classes share log 2."""
    rng = np.random.default_rng(0)
    first, noise = rng.normal(size=(2, 3_000))
    second = 0.8 * first + 0.6 * noise
    assert information_with_number(first, second, 10) == pytest.approx(-0.5 * math.log(0.36), abs=0.06)
    assert information_with_number(first, noise, 10) < 0.05
    labels = rng.integers(2, size=3_000)
    assert information_with_class(10.0 * labels + first, labels, 10) == pytest.approx(math.log(2), abs=0.01)
    assert information_with_class(first, labels, 10) < 0.02
    constant = jittered(np.zeros((3_000, 1)), rng)[:, 0]
    assert information_with_class(constant, labels, 10) < 0.05


def test_neighbour_information_equals_scikit_learns() -> None:
    from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=600)
    latent = labels + rng.normal(size=600)
    latent /= latent.std()
    ours = information_with_class(latent, labels, 10)
    theirs = mutual_info_classif(latent[:, None], labels, n_neighbors=10, random_state=0)[0]
    assert ours == pytest.approx(theirs, abs=1e-6)
    value = latent + rng.normal(size=600)
    value /= value.std()
    theirs = mutual_info_regression(latent[:, None], value, n_neighbors=10, random_state=0)[0]
    assert information_with_number(latent, value, 10) == pytest.approx(theirs, abs=1e-3)


def test_ranks_share_ties() -> None:
    np.testing.assert_array_equal(ranks(np.array([[3.0], [1.0], [3.0], [2.0]]))[:, 0], [3.5, 1.0, 3.5, 2.0])


def drawn(seed: int, num_latents: int = 4) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(size, size=300) for size in (3, 4, 5)], axis=1)
    codes = factors @ rng.normal(size=(3, num_latents)) + rng.normal(size=(300, num_latents))
    return codes, factors, rng


SCORES = (metrics.mcc, metrics.med, metrics.jemmig, metrics.linear_r2, metrics.cca)


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_order_and_scale_of_latents_and_order_of_rows_do_not_matter(seed: int) -> None:
    codes, factors, rng = drawn(seed)
    latents, rows = rng.permutation(4), rng.permutation(300)
    scale = 2.0 ** rng.integers(-8, 9, size=4)
    for score in SCORES:
        expected = score(codes, factors).score
        assert score(codes[:, latents], factors).score == pytest.approx(expected, abs=1e-9)
        assert score(codes[rows], factors[rows]).score == pytest.approx(expected, abs=1e-9)
        assert score(codes * scale, factors).score == pytest.approx(expected, abs=1e-9)
        assert 0.0 <= expected <= 1.0
    robust = metrics.irs(codes, factors, num_shuffles=0).score
    assert metrics.irs(codes[:, latents], factors, num_shuffles=0).score == pytest.approx(robust, abs=1e-9)
    assert metrics.irs(codes[rows], factors[rows], num_shuffles=0).score == pytest.approx(robust, abs=1e-9)
    assert metrics.irs(codes * 0.25, factors, num_shuffles=0).score == pytest.approx(robust, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, extra=st.integers(0, 3))
def test_mcc_is_one_under_permutation_sign_and_scale(seed: int, extra: int) -> None:
    _, factors, rng = drawn(seed)
    signs = rng.choice([-3.0, -1.0, 1.0, 0.5], size=3)
    codes = np.concatenate([factors * signs, rng.normal(size=(300, extra))], axis=1)[:, rng.permutation(3 + extra)]
    assert metrics.mcc(codes, factors).score == pytest.approx(1.0, abs=1e-9)
    assert metrics.mcc(codes**3, factors, correlation="spearman").score == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, mapping=st.sampled_from(["linear", "cca"]))
def test_weak_mcc_is_one_under_an_invertible_linear_map(seed: int, mapping: str) -> None:
    _, factors, rng = drawn(seed)
    mixing = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ np.diag(rng.uniform(0.5, 2.0, 3))
    codes = factors @ mixing + rng.normal(size=3)
    assert metrics.mcc(codes, factors, mapping=mapping).score == pytest.approx(1.0, abs=1e-6)
    assert metrics.linear_r2(codes, factors).score == pytest.approx(1.0, abs=1e-9)
    assert metrics.cca(codes, factors).score == pytest.approx(1.0, abs=1e-9)


def test_continuous_factors_and_mixed_tables() -> None:
    rng = np.random.default_rng(0)
    table = {"kind": np.array(["red", "green", "blue"])[rng.integers(3, size=600)], "size": rng.uniform(size=600)}
    codes = np.stack([table["size"] ** 2, (table["kind"] == "red") + 0.1 * rng.normal(size=600)], axis=1)
    assert metrics.mcc(codes, table, correlation="spearman").per_factor[1] == pytest.approx(1.0)
    found = metrics.infomec(codes, table)
    assert found.information[0].argmax() == 1
    assert found.per_factor_explicitness[1] > 0.9
    assert any("log 20" in note for note in found.notes)
    for score in (metrics.linear_r2, metrics.cca, metrics.mlp_r2, metrics.dci_es, metrics.irs, metrics.jemmig):
        assert np.isfinite(score(codes, table).score)


def test_options_are_refused_in_words() -> None:
    codes, factors, _ = drawn(0)
    with pytest.raises(ValueError, match="'pearson' or 'spearman'"):
        metrics.mcc(codes, factors, correlation="kendall")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'linear' or 'cca'"):
        metrics.mcc(codes, factors, mapping="mlp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantile=0"):
        metrics.irs(codes, factors, quantile=0)
    with pytest.raises(ValueError, match="both or neither"):
        metrics.linear_r2(codes, factors, codes)
