"""Disentanglement, completeness, informativeness (Eastwood & Williams 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from metrics.arrays import Array, Float64
from metrics.factors import Pairs, Table, paired_split, refuse_continuous
from metrics.importance import Fit, Regressor, fitted_importance

TINY = 1e-11  # inside the normalisation and the logarithm, as published code has it


@dataclass(frozen=True, eq=False)
class DCI:
    """DCI with its parts; ``score`` is the disentanglement.

    Args:
        disentanglement: does a latent serve one factor only? In [0, 1].
        completeness: is a factor served by one latent only? Its logarithm has base D, so values at different D are not
            comparable.
        informativeness: mean over factors of the performance on test rows: accuracy of classes, R2 of numbers.
        train_informativeness: on train rows.
        baseline: mean over factors of the performance of a constant prediction on test rows (the majority class; R2 of
            0).
        importance: [D, K].
        per_latent: [D], disentanglement of each latent. per_factor: [K], completeness of each factor.
        accuracy: [K], performance on test rows. majority: [K], that of a constant prediction.
    """

    score: float
    disentanglement: float
    completeness: float
    informativeness: float
    train_informativeness: float
    baseline: float
    importance: Float64
    per_latent: Float64
    per_factor: Float64
    accuracy: Float64
    majority: Float64
    regressor: Regressor
    num_train: int
    num_test: int
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]


def dci(
    codes: Array,
    factors: Table,
    test_codes: Array,
    test_factors: Table,
    *,
    seed: int,
    regressor: Regressor = "trees",
) -> DCI:
    """DCI with one scikit-learn predictor per factor, seeded.

    The score depends on the predictor, so name it beside the figure. Usual sizes are 10,000 train and 5,000 test rows
    (about five minutes for dSprites with trees). Trees choose at random between latents that tie, so completeness of a
    redundant code depends on the seed.

    Args:
        codes: [N, D] train rows, with factors [N, K].
        factors: classes or numbers.
        test_codes: rows for the informativeness.
        test_factors: the same factors of these rows.
        seed: seed of the predictors.
        regressor: "trees", gradient-boosted as in disentanglement_lib. "forest": a random forest, whose trees look at
            random latents and so spread importance. "lasso": absolute coefficients at alpha .02, on standardised codes
            and factors, of class indices too. "logistic": logistic regression, L1 penalty (C = .1), classes only.

    Raises:
        ValueError: unmatched shapes, an unknown regressor, or continuous factors for "logistic".
    """
    if regressor not in get_args(Regressor):
        raise ValueError(f"regressor={regressor!r} is not known; choose one of {', '.join(get_args(Regressor))}")
    train, test = paired_split(codes, factors, test_codes, test_factors)
    if regressor == "logistic":
        refuse_continuous(train.table)
    fits = [fitted_importance(regressor, train, test, k, seed) for k in range(len(train.kept))]
    return _of_fits(fits, train, test, regressor, seed)


def _of_fits(fits: list[Fit], train: Pairs, test: Pairs, regressor: Regressor, seed: int) -> DCI:
    """The result from one fit per factor, notes included."""
    importance = np.stack([fit.weights for fit in fits], axis=1)
    accuracy = np.array([fit.performance for fit in fits])
    fit_notes = tuple(f"factor {k}: {note}" for k, fit in zip(train.kept, fits, strict=True) for note in fit.notes)
    per_latent, latent_weight = concentration(importance)
    per_factor, factor_weight = concentration(importance.T)
    majority = _constant_performance(train, test, regressor)
    disentanglement = float(latent_weight @ per_latent)
    return DCI(
        score=disentanglement,
        disentanglement=disentanglement,
        completeness=float(factor_weight @ per_factor),
        informativeness=float(accuracy.mean()),
        train_informativeness=float(np.mean([fit.train_performance for fit in fits])),
        baseline=float(majority.mean()),
        importance=importance,
        per_latent=per_latent,
        per_factor=per_factor,
        accuracy=accuracy,
        majority=majority,
        regressor=regressor,
        num_train=len(train),
        num_test=len(test),
        kept=train.kept,
        seed=seed,
        notes=train.notes + fit_notes + importance_notes(importance),
    )


def _constant_performance(train: Pairs, test: Pairs, regressor: Regressor) -> Float64:
    """Accuracy [K] on test rows of the class that is commonest in train; 0, the R2 of a constant, where numbers are regressed."""
    majority = np.zeros(len(train.kept))
    for k, (column, tested) in enumerate(zip(train.table.columns, test.table.columns, strict=True)):
        if regressor != "lasso" and column.dtype.kind == "i":
            majority[k] = np.mean(tested == np.bincount(column.astype(np.int64)).argmax())
    return majority


def importance_notes(importance: Float64) -> tuple[str, ...]:
    """Notes about importances [D, K] for which disentanglement or completeness hold by definition."""
    notes: tuple[str, ...] = ()
    if importance.sum() == 0:
        notes += ("no latent matters for any factor: disentanglement and completeness are 0",)
    if importance.shape[0] == 1:
        notes += ("there is one latent: it serves each factor alone, and completeness is 1 by definition",)
    if importance.shape[1] == 1:
        notes += ("there is one factor: each latent serves it alone, and disentanglement is 1 by definition",)
    return notes


def concentration(importance: Float64) -> tuple[Float64, Float64]:
    """1 - entropy of each row of importances [R, C], in base C, and each row's share of the total: both [R].

    On [D, K] these are the latents' disentanglement and its weights, on the transpose the factors' completeness. All
    zero gives weights 0, so that the weighted score is 0. With one column, every row above 0 is fully concentrated: 1.
    """
    num_columns, total = importance.shape[1], importance.sum()
    share = (importance + TINY) / (importance + TINY).sum(axis=1, keepdims=True)
    nats = -(share * np.log(share)).sum(axis=1)
    concentrated = 1.0 - nats / np.log(num_columns) if num_columns > 1 else np.ones(len(importance))
    weight = importance.sum(axis=1) / total if total > 0 else np.zeros(len(importance))
    return concentrated, weight
