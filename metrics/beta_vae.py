"""The beta-VAE metric (Higgins et al. 2017): a linear classifier tells which factor two images share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metrics.arrays import Array, Float64, Floats, Int64, check_counts
from metrics.classifiers import fitted_logistic
from metrics.factors import Table, paired
from metrics.linear import standardised
from metrics.sampling import CodeOf, Trials, draw_fixed, encode_once, make_grid, sample_rows

NUMBERS_AT_ONCE = 2**20  # of codes gathered from the table, so that the working set stays in cache


@dataclass(frozen=True, eq=False)
class BetaVAEMetric:
    """Accuracy of the linear classifier.

    Args:
        score: on fresh points, in [1/K, 1]. It saturates: an entangled code can score above .99.
        train_score: on the points it was fitted to.
        per_factor: [K], accuracy on the points of each label; 0 where a label was not drawn.
        baseline: 1/K, chance; its binomial sd at 5,000 points and K = 5 is .0057.
        num_draws: number of images drawn, num_distinct: number of different ones, each encoded once.
    """

    score: float
    train_score: float
    per_factor: Float64
    baseline: float
    num_draws: int
    num_distinct: int
    seed: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def beta_vae_metric(
    code_of: CodeOf,
    factor_sizes: Sequence[int] | Array,
    *,
    seed: int,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    batch_size: int = 64,
    standardise: bool = False,
) -> BetaVAEMetric:
    """Feature = mean over ``batch_size`` pairs that share factor k of |z1 - z2|, label k; score = test accuracy.

    The classifier is scikit-learn's multinomial LogisticRegression; figures from 2018 were probably its one-vs-rest
    form, which differs by at most .01. ``standardise`` divides features by their spread on the train points (pooled and
    PCA codes need it); off by default, as in other implementations.
    """
    check_counts(num_train=num_train, num_eval=num_eval, batch_size=batch_size)
    grid, rng = make_grid(factor_sizes), np.random.default_rng(seed)
    labels, factor, _, first = draw_fixed(grid, num_train + num_eval, batch_size, rng)
    shared_value = first // grid.strides[factor] % grid.sizes[factor]
    second = grid.fix(rng.integers(grid.total, size=first.shape), factor, shared_value)
    table, (rows_first, rows_second) = encode_once(code_of, grid, first, second)
    trials = Trials(table, labels, num_train, grid.kept, seed, grid.notes)
    return _scored(trials, rows_first, rows_second, standardise)


def beta_vae_of_rows(
    codes: Array,
    factors: Table,
    *,
    seed: int = 0,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    batch_size: int = 64,
    standardise: bool = False,
) -> BetaVAEMetric:
    """:func:`beta_vae_metric` of given codes [N, D] and factors [N, K], for data without a grid to encode.

    The two images of a pair are rows with the same class of the factor; the other factors vary as they do among the
    rows. A row may be paired with itself, which makes classes of few rows look too easy.
    """
    check_counts(num_train=num_train, num_eval=num_eval, batch_size=batch_size)
    data, rng = paired(codes, factors, any_scale=False), np.random.default_rng(seed)
    labels = rng.integers(len(data.kept), size=num_train + num_eval)
    first = rng.integers(len(data), size=(len(labels), batch_size))
    second = sample_rows(data.classes).partners(first, labels, rng)
    return _scored(Trials(data.codes, labels, num_train, data.kept, seed, data.notes), first, second, standardise)


def _scored(trials: Trials, first: Int64, second: Int64, standardise: bool) -> BetaVAEMetric:
    """Fit the classifier on the first trials, pairs of rows [P, L] of the table, and score the others."""
    features, labels, num_train = _mean_differences(trials.table, first, second), trials.labels, trials.num_train
    if standardise:
        features = standardised(features, np.arange(num_train))
    model, fit_notes = fitted_logistic(features[:num_train], labels[:num_train], seed=trials.seed)
    named = model.predict(features)
    score, train_score = trials.accuracy(named)
    num_factors, tested = len(trials.kept), labels[num_train:]
    correct = np.bincount(tested, weights=named[num_train:] == tested, minlength=num_factors)
    return BetaVAEMetric(
        score=score,
        train_score=train_score,
        per_factor=correct / np.maximum(np.bincount(tested, minlength=num_factors), 1),
        baseline=trials.baseline,
        num_draws=2 * first.size,
        num_distinct=len(trials.table),
        seed=trials.seed,
        kept=trials.kept,
        notes=trials.notes + fit_notes,
    )


def _mean_differences(table: Floats, first: Int64, second: Int64) -> Floats:
    """[U, D] codes, rows [P, L] of pairs -> [P, D]."""
    num_points, batch_size = first.shape
    features = np.empty((num_points, table.shape[1]), dtype=table.dtype)
    step = max(1, NUMBERS_AT_ONCE // (batch_size * table.shape[1]))
    for start in range(0, num_points, step):
        part = slice(start, start + step)
        features[part] = np.abs(table.take(first[part], axis=0) - table.take(second[part], axis=0)).mean(axis=1)
    return features
