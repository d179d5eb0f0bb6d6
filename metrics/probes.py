"""Recovery of each factor from the codes by a linear map or a small network: R2 and canonical correlation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import Array, Float64, check_count
from metrics.classifiers import fit_with_notes
from metrics.factors import Pairs, Table, paired, paired_split
from metrics.linear import canonical_correlations, least_squares, standardised
from metrics.reductions import halves

HIDDEN_UNITS = 64


@dataclass(frozen=True, eq=False)
class ProbeR2:
    """R2 of a probe.

    Args:
        score: mean over factors of 1 - squared error / variance; at most 1, below 0 if the probe does worse than the
            mean.
        per_factor: [K].
        adjusted: the score corrected for the number of latents (Wherry 1931), if a linear map was scored on the rows that
            it was fitted to; else the score.
        num_train: rows of the fit. num_test: rows that were scored.
    """

    score: float
    per_factor: Float64
    adjusted: float
    num_train: int
    num_test: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def linear_r2(
    codes: Array, factors: Table, test_codes: Array | None = None, test_factors: Table | None = None
) -> ProbeR2:
    """R2 of least squares from codes [N, D] to factors [N, K]; classes count by their index.

    Without test rows the rows of the fit are scored, which overstates R2 by about D / N; ``adjusted`` corrects for that.
    """
    train, test = _train_and_test(codes, factors, test_codes, test_factors)
    held_out = test is not train
    both = np.concatenate([train.codes, test.codes]).astype(np.float64) if held_out else train.codes.astype(np.float64)
    predicted = least_squares(
        both, np.concatenate([train.values, test.values]) if held_out else train.values, slice(len(train))
    )
    per_factor = r2(predicted[len(train) :] if held_out else predicted, test.values)
    num_points, num_latents, notes = len(train), train.codes.shape[1], train.notes
    adjusted = float(per_factor.mean())
    if not held_out:
        spare = num_points - num_latents - 1
        adjusted = 1.0 - (1.0 - adjusted) * (num_points - 1) / spare if spare > 0 else 0.0
        if num_points <= 10 * num_latents:
            notes += (f"{num_points} rows for {num_latents} latents: R2 of the fitted rows is too high, see adjusted",)
    return ProbeR2(float(per_factor.mean()), per_factor, adjusted, num_points, len(test), train.kept, notes)


def mlp_r2(
    codes: Array,
    factors: Table,
    test_codes: Array | None = None,
    test_factors: Table | None = None,
    *,
    seed: int = 0,
    hidden_units: int = HIDDEN_UNITS,
) -> ProbeR2:
    """R2 on held-out rows of a network with one hidden layer from codes [N, D] to factors [N, K].

    Without test rows one random half of the rows is fitted and the other scored. Compare with :func:`linear_r2`: the
    difference is information that a linear map cannot read.
    """
    from sklearn.neural_network import MLPRegressor

    check_count(hidden_units, "hidden_units")
    train, test = _train_and_test(codes, factors, test_codes, test_factors)
    if test is train:
        fit, score = halves(len(train), seed)
        features, targets = train.codes.astype(np.float64), train.values
    else:
        fit, score = np.arange(len(train)), np.arange(len(train), len(train) + len(test))
        features = np.concatenate([train.codes, test.codes]).astype(np.float64)
        targets = np.concatenate([train.values, test.values])
    features, goals = standardised(features, fit), standardised(targets, fit)
    network = MLPRegressor(
        hidden_layer_sizes=(hidden_units,),
        alpha=1e-3,
        learning_rate_init=1e-2,
        max_iter=200,
        early_stopping=True,
        random_state=seed,
    )
    network, notes = fit_with_notes(network, features[fit], goals[fit] if goals.shape[1] > 1 else goals[fit, 0])
    predicted = network.predict(features[score]).reshape(len(score), -1)
    per_factor = r2(predicted, goals[score])
    mean = float(per_factor.mean())
    notes = train.notes + notes
    return ProbeR2(mean, per_factor, mean, len(fit), len(score), train.kept, notes)


def _train_and_test(
    codes: Array, factors: Table, test_codes: Array | None, test_factors: Table | None
) -> tuple[Pairs, Pairs]:
    if (test_codes is None) != (test_factors is None):
        raise ValueError("only one of test_codes and test_factors was given; give both or neither")
    if test_codes is None or test_factors is None:
        data = paired(codes, factors)
        return data, data
    return paired_split(codes, factors, test_codes, test_factors)


def r2(predicted: Float64, truth: Float64) -> Float64:
    """1 - squared error / variance of each column [N, K]; 0 where the truth does not vary."""
    variance = truth.var(axis=0)
    error = np.mean((predicted - truth) ** 2, axis=0)
    return np.asarray(np.where(variance > 0, 1.0 - error / np.where(variance > 0, variance, 1.0), 0.0))


@dataclass(frozen=True, eq=False)
class CCA:
    """Canonical correlation of codes and factors.

    Args:
        score: mean over K of the canonical correlations, in [0, 1]; if there are fewer pairs, the rest counts 0.
        correlations: falling, at most min(D, K).
        num_points: N.
    """

    score: float
    correlations: Float64
    num_points: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def cca(codes: Array, factors: Table) -> CCA:
    """Mean canonical correlation of codes [N, D] with factors [N, K] (Hotelling 1936): 1 for any invertible linear map."""
    data = paired(codes, factors)
    found, notes = canonical_correlations(data.codes.astype(np.float64), data.values), data.notes
    if len(data) <= 10 * data.codes.shape[1]:
        notes += (f"{len(data)} rows for {data.codes.shape[1]} latents: the correlations are too high",)
    return CCA(float(found.sum()) / len(data.kept), found, len(data), data.kept, notes)
