"""Input that cannot be scored is refused with its shape; what can gets a value and a note, never NaN."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import metrics
from tests.conftest import ROOT

RNG = np.random.default_rng(0)
CODES = RNG.normal(size=(200, 3)).astype(np.float32)
FACTORS = np.stack([RNG.integers(n, size=200) for n in (2, 3)], axis=1)

ON_ARRAYS = {
    "mig": metrics.mig,
    "mig_sup": metrics.mig_sup,
    "mic": lambda codes, factors: metrics.mic(codes, factors, [0], num_shuffles=2),
    "modularity": metrics.modularity,
    "sap_r2": lambda codes, factors: metrics.sap(codes, factors, kind="r2"),
    "sap": metrics.sap,
    "explicitness": lambda codes, factors: metrics.explicitness(codes, factors, codes, factors, seed=0),
    "dci": lambda codes, factors: metrics.dci(codes, factors, codes, factors, seed=0),
    "aggregate": lambda codes, factors: metrics.aggregate_posterior_mig(
        codes, np.ones_like(np.asarray(codes, dtype=np.float64)), factors
    ),
}


@pytest.fixture(params=ON_ARRAYS, ids=list(ON_ARRAYS))
def metric(request: pytest.FixtureRequest):
    return ON_ARRAYS[request.param]


@pytest.mark.parametrize(
    ("codes", "factors", "said"),
    [
        (CODES, FACTORS[:150], r"\(200, 3\).*\(150, 2\)"),
        (CODES[:, 0], FACTORS, r"\(200,\)"),
        (CODES, FACTORS[:, 0], r"\(200,\)"),
        (CODES[:0], FACTORS[:0], r"\(0, 3\)"),
        (np.where(CODES > 2, np.nan, CODES), FACTORS, "NaN"),
        (np.where(CODES > 2, np.inf, CODES), FACTORS, "infinite"),
        (CODES, FACTORS - 1, "negative value -1"),
        (CODES, np.full(FACTORS.shape, np.nan), "NaN"),
        (CODES, np.ones_like(FACTORS), "no factor"),
        (CODES, FACTORS.astype(complex), "dtype"),
    ],
)
def test_what_cannot_be_scored_is_named(metric, codes: np.ndarray, factors: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        metric(codes, factors)


@pytest.mark.parametrize("name", ON_ARRAYS)
def test_continuous_factors_are_scored_binned_or_refused_with_the_names_of_scores_that_take_them(name: str) -> None:
    """DCI with trees regresses them; classifiers refuse them; histograms cut them into quantile bins and say so."""
    continuous = np.stack([FACTORS[:, 0], RNG.normal(size=200) + CODES[:, 0]], axis=1)
    if name in ("sap", "explicitness"):
        with pytest.raises(ValueError, match=r"(?s)factors 1 .*whole numbers.*linear_r2.*quantile_classes"):
            ON_ARRAYS[name](CODES, continuous)
        return
    result = ON_ARRAYS[name](CODES, continuous)
    assert finite(metrics.to_plain(result))
    assert any("quantile bins" in note for note in result.notes) == (name not in ("sap_r2", "dci"))


CHEAP = [name for name in ON_ARRAYS if name not in ("sap", "explicitness", "dci")]


def test_labels_score_as_dense_ones() -> None:
    """Ten classes and more, so that the order of numbers and of their spellings differ."""
    factors = np.stack([RNG.integers(n, size=200) for n in (2, 12)], axis=1)
    words = np.array(["factory", *"ghijklmnopq"])  # the first could be taken for the word of a message
    for given in (
        factors + 1,
        factors * 1000,
        words[factors],
        factors.astype(str),
        factors.astype(np.float32),
        {"first": factors[:, 0], "second": words[factors[:, 1]]},
    ):
        np.testing.assert_array_equal(metrics.quantile_classes(given), factors)
        for name in CHEAP:
            assert metrics.to_plain(ON_ARRAYS[name](CODES, given)) == metrics.to_plain(ON_ARRAYS[name](CODES, factors))
    small = FACTORS[:, 1:]
    split = metrics.explicitness(CODES[:150], words[small[:150]], CODES[150:], words[small[150:]])
    assert split.score == metrics.explicitness(CODES[:150], small[:150], CODES[150:], small[150:]).score


@pytest.mark.parametrize("scale", [1e160, 1e-200, 1e307, 1e-300])
@pytest.mark.parametrize("name", [*CHEAP, "explicitness"])
def test_codes_of_extreme_scale_give_a_value(name: str, scale: float) -> None:
    codes = CODES.astype(np.float64)
    if name == "aggregate":  # its variances have the codes' scale
        with pytest.raises(ValueError, match="standard deviation"):
            ON_ARRAYS[name](codes * scale, FACTORS)
        return
    found = ON_ARRAYS[name](codes * scale, FACTORS)
    assert finite(metrics.to_plain(found))
    if scale > 1 or name not in ("mig_sup", "sap_r2"):  # both have absolute thresholds of variance
        assert found.score == pytest.approx(ON_ARRAYS[name](codes, FACTORS).score, abs=1e-9)


@pytest.mark.parametrize("scale", [1e160, 1e-200, 1e307])
def test_scores_that_depend_on_scale_refuse_extreme_ones_in_a_line(scale: float) -> None:
    for score in (metrics.sap, metrics.beta_vae_of_rows, metrics.factor_vae_of_rows):
        with pytest.raises(ValueError, match=r"^codes reach [^\n]*standard deviation$"):
            score(CODES.astype(np.float64) * scale, FACTORS)


def test_unsupervised_scores_of_extreme_scale() -> None:
    for scale in (1e160, 1e-200, 1e307):
        codes = CODES.astype(np.float64) * scale
        assert metrics.gaussian_total_correlation(codes) == pytest.approx(
            metrics.gaussian_total_correlation(CODES.astype(np.float64)), abs=1e-9
        )
        assert metrics.pairwise_information(codes).score == metrics.pairwise_information(CODES.astype(np.float64)).score
        with pytest.raises(ValueError, match="standard deviation"):
            metrics.covariance_distance(codes, np.ones_like(codes))
        with pytest.raises(ValueError, match="standard deviation"):
            metrics.factor_vae_of_rows(codes, FACTORS, num_train=10, num_eval=10)
        reduced = metrics.reduce_groups([codes], "pca", dim=2, seed=0).codes
        expected = metrics.reduce_groups([CODES.astype(np.float64)], "pca", dim=2, seed=0).codes
        np.testing.assert_allclose(np.abs(reduced), np.abs(expected), atol=1e-9)


def test_an_outlier_is_noted_and_does_not_affect_quantile_bins() -> None:
    rng = np.random.default_rng(1)
    factors = rng.integers(5, size=(1_000, 1))
    codes = np.concatenate([factors + 0.01 * rng.normal(size=factors.shape), rng.normal(size=(1_000, 1))], axis=1)
    codes[0, 0] = 1e5
    spoilt = metrics.mig(codes, factors)
    assert spoilt.score < 0.1
    assert any("one bin holds" in note and "binning='quantile'" in note for note in spoilt.notes)
    assert metrics.mig(codes, factors, binning="quantile").score > 0.95
    with pytest.raises(ValueError, match="'width' or 'quantile'"):
        metrics.mig(codes, factors, binning="equal")  # type: ignore[arg-type]


def test_a_latent_that_repeats_is_not_crowded() -> None:
    """A grid in order: every 20th row of 40,000 has the same value, and all rows have four."""
    repeats = np.arange(40_000) % 4
    assert not any("one bin" in note for note in metrics.mig(repeats[:, None] * 1.0, repeats[:, None]).notes)


def test_few_points_for_the_cells_of_a_histogram_are_noted() -> None:
    """MIG of noise is .26 at one latent and 200 images: 20 bins and 32 classes make 640 cells."""
    rng = np.random.default_rng(2)
    noise = metrics.mig(rng.normal(size=(200, 1)), rng.integers(32, size=(200, 1)))
    assert noise.score > 0.2
    assert any("Miller-Madow" in note for note in noise.notes)


def test_masked_and_missing_entries_are_refused() -> None:
    masked = np.ma.masked_array(CODES, mask=CODES > 2.0)
    with pytest.raises(ValueError, match="masked"):
        metrics.mig(masked, FACTORS)
    for missing in (None, ""):
        factors = FACTORS.astype(object)
        factors[3, 0] = missing
        with pytest.raises(ValueError, match="empty cells in factor 0"):
            metrics.mig(CODES, factors)


def test_modularity_of_noise_is_reported_beside_it() -> None:
    rng = np.random.default_rng(3)
    for sizes in ((2, 100), (4, 10, 20), (10,) * 5):
        factors = np.stack([rng.integers(n, size=4_000) for n in sizes], axis=1)
        result = metrics.modularity(rng.normal(size=(4_000, 60)), factors)
        assert result.noise_level == pytest.approx(result.score, abs=0.02)


def test_group_information_of_many_groups_takes_memory_linear_in_them() -> None:
    """40 copies of 40 latents of 2,000 points would be 25 MB; their growing concatenations 13 times as much."""
    import tracemalloc

    groups = [RNG.normal(size=(2_000, 1)) for _ in range(40)]
    factors = RNG.integers(2, size=(2_000, 1))
    metrics.group_information(groups[:2], factors, seed=0)
    tracemalloc.start()
    metrics.group_information(groups, factors, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 40 * 2_000 * 8


def finite(plain: object) -> bool:
    """No NaN anywhere in plain data, and none written as text."""
    if isinstance(plain, dict):
        return all(finite(value) for value in plain.values())
    if isinstance(plain, list):
        return all(finite(value) for value in plain)
    return plain != "nan" and not (isinstance(plain, float) and math.isnan(plain))


@pytest.mark.parametrize(
    ("codes", "factors"),
    [
        (CODES[:, :1], FACTORS),
        (CODES[:12], FACTORS[:12]),
        (CODES, FACTORS[:, :1]),
        (np.zeros_like(CODES), FACTORS),
        (np.concatenate([CODES, CODES, np.ones_like(CODES)], axis=1), FACTORS),
        (CODES * np.float32(1e18), FACTORS),
        (CODES, np.concatenate([FACTORS, np.full((200, 1), 7)], axis=1)),
    ],
    ids=["one latent", "fewer points than bins", "one factor", "dead", "redundant", "huge", "one-valued factor"],
)
def test_odd_but_possible_input_has_a_value(metric, codes: np.ndarray, factors: np.ndarray) -> None:
    plain = metrics.to_plain(metric(codes, factors))
    assert finite(plain)
    json.dumps(plain, allow_nan=False)
    if factors.shape[1] == 3:
        assert plain["kept"] == [0, 1]
        assert any("factors [2]" in note for note in plain["notes"])


def test_few_points_and_dropped_factors_are_noted() -> None:
    assert any("fewer than the 20 bins" in note for note in metrics.mig(CODES[:12], FACTORS[:12]).notes)
    assert metrics.total_correlation(CODES[:12]).notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_scored_as_arrays(dtype: torch.dtype) -> None:
    codes = torch.from_numpy(CODES).to(dtype).requires_grad_()
    plain = codes.detach().double().numpy() if dtype == torch.float64 else codes.detach().float().numpy()
    assert metrics.mig(codes, torch.from_numpy(FACTORS)).score == metrics.mig(plain, FACTORS).score


def test_ranges_that_overflow_are_binned() -> None:
    wide = np.array([[-3e38], [0.0], [3e38]] * 10, dtype=np.float32)
    assert metrics.mig(wide, np.arange(30)[:, None] % 3).score == pytest.approx(1.0)


def test_arguments_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="choose 'discrete' or 'r2'"):
        metrics.sap(CODES, FACTORS, kind="continuous")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="both or neither"):
        metrics.sap(CODES, FACTORS, CODES)
    for subset in ([], [3], [-1], [0, 0], [[0]], [0.5]):
        with pytest.raises(ValueError, match="distinct indices from 0 to 2"):
            metrics.mic(CODES, FACTORS, subset)
    with pytest.raises(ValueError, match="bins=1"):
        metrics.mig(CODES, FACTORS, bins=1)
    with pytest.raises(ValueError, match=r"test_codes \(200, 2\).*\(200, 3\)"):
        metrics.dci(CODES, FACTORS, CODES[:, :2], FACTORS, seed=0)
    with pytest.raises(ValueError, match=r"means \(200, 3\) and variances \(200, 2\)"):
        metrics.covariance_distance(CODES, CODES[:, :2])
    with pytest.raises(ValueError, match="negative"):
        metrics.covariance_distance(CODES, CODES)
    with pytest.raises(ValueError, match="above 0"):
        metrics.decompose_rate(CODES, np.zeros_like(CODES), seed=0)
    with pytest.raises(ValueError, match="two models"):
        metrics.udr([CODES], [np.ones(3)])
    with pytest.raises(ValueError, match="one KL per latent"):
        metrics.udr([CODES, CODES], [np.ones(3), np.ones(2)])
    with pytest.raises(ValueError, match="choose 'lasso' or 'spearman'"):
        metrics.udr([CODES, CODES], [np.ones(3)] * 2, method="ridge")  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", [metrics.beta_vae_metric, metrics.factor_vae_metric])
def test_sampled_metrics_refuse_in_words(metric) -> None:
    def identity(factors: np.ndarray) -> np.ndarray:
        return factors.astype(np.float32)

    for sizes in ([], [1, 1], [0, 3], [2.5, 2], [[2, 3]]):
        with pytest.raises(ValueError, match="factor_sizes="):
            metric(identity, sizes, seed=0)
    with pytest.raises(ValueError, match="num_train=0"):
        metric(identity, (2, 3), seed=0, num_train=0)
    with pytest.raises(ValueError, match="one code per row"):
        metric(lambda factors: np.zeros((1, 2)), (2, 3), seed=0, num_train=10, num_eval=10)
    with pytest.raises(ValueError, match="NaN"):
        metric(lambda factors: np.full((len(factors), 2), np.nan), (2, 3), seed=0, num_train=10, num_eval=10)
    one = metric(identity, (1, 3), seed=0, num_train=20, num_eval=20)
    assert one.score == one.baseline == 1.0


def test_to_plain_is_strict_json() -> None:
    plain = metrics.to_plain(
        {"inf": math.inf, "nan": math.nan, "array": np.arange(2), "none": None, "deep": (np.float32(1),)}
    )
    assert plain == {"inf": "inf", "nan": "nan", "array": [0, 1], "none": None, "deep": [1.0]}
    assert metrics.to_plain(metrics.mig(CODES, FACTORS))["notes"] == []
    with pytest.raises(ValueError, match="no plain form"):
        metrics.to_plain(object())


def test_scores_of_codes_import_neither_torch_nor_scikit_learn() -> None:
    """PyTorch takes seconds to import; what needs it is found when it is first used."""
    program = "import metrics, sys; assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules); metrics.elbo.terms"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    needs_torch = {
        path.stem
        for path in (ROOT / "metrics").glob("*.py")
        if any(line.startswith(("import torch", "from torch")) for line in path.read_text().splitlines())
    }
    assert needs_torch == metrics._MODULES_WITH_TORCH
