"""Input that cannot be scored is refused with its shape; what can gets a value and a note, never NaN."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import metrics

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
        (CODES, FACTORS + 0.5, "whole numbers"),
        (CODES, np.full(FACTORS.shape, np.nan), "whole numbers"),
        (CODES, np.ones_like(FACTORS), "no factor"),
        (CODES, FACTORS.astype(str), "dtype"),
    ],
)
def test_what_cannot_be_scored_is_named(metric, codes: np.ndarray, factors: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        metric(codes, factors)


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
