"""Disentanglement, completeness, informativeness (Eastwood & Williams 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import Array, Float64, Labelled, labelled_split
from metrics.classifiers import fit_with_notes

TINY = 1e-11  # inside the normalisation and the logarithm, as published code has it


@dataclass(frozen=True, eq=False)
class DCI:
    """DCI with its parts; ``score`` is the disentanglement.

    Args:
        disentanglement: does a latent serve one factor only? In [0, 1].
        completeness: is a factor served by one latent only? Its logarithm's base is D, so values at different D do
            not compare.
        informativeness: mean over factors of the accuracy on test rows.
        train_informativeness: on train rows.
        importance: [D, K].
        per_latent: [D], disentanglement of each latent. per_factor: [K], completeness of each factor.
        accuracy: [K] on test rows.
    """

    score: float
    disentanglement: float
    completeness: float
    informativeness: float
    train_informativeness: float
    importance: Float64
    per_latent: Float64
    per_factor: Float64
    accuracy: Float64
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]


def dci(codes: Array, factors: Array, test_codes: Array, test_factors: Array, *, seed: int) -> DCI:
    """DCI with one scikit-learn GradientBoostingClassifier (defaults) per factor, seeded.

    Usual sizes are 10,000 train and 5,000 test rows (about five minutes for dSprites). Trees choose at random between
    latents that tie, so completeness of a redundant code depends on the seed. Raises ValueError for unmatched shapes.
    """
    train, test = labelled_split(codes, factors, test_codes, test_factors)
    importance, accuracy, train_accuracy, notes = _boosted_trees(train, test, seed)
    per_latent, latent_weight = concentration(importance)
    per_factor, factor_weight = concentration(importance.T)
    notes = train.notes + notes
    if importance.sum() == 0:
        notes += ("no latent matters for any factor: disentanglement and completeness are 0",)
    if importance.shape[0] == 1:
        notes += ("there is one latent: it serves each factor alone, and completeness is 1 by definition",)
    if importance.shape[1] == 1:
        notes += ("there is one factor: each latent serves it alone, and disentanglement is 1 by definition",)
    disentanglement = float(latent_weight @ per_latent)
    return DCI(
        score=disentanglement,
        disentanglement=disentanglement,
        completeness=float(factor_weight @ per_factor),
        informativeness=float(accuracy.mean()),
        train_informativeness=float(train_accuracy.mean()),
        importance=importance,
        per_latent=per_latent,
        per_factor=per_factor,
        accuracy=accuracy,
        kept=train.kept,
        seed=seed,
        notes=notes,
    )


def concentration(importance: Float64) -> tuple[Float64, Float64]:
    """1 - entropy of each row of importances [R, C], in base C, and each row's share of the total: both [R].

    On [D, K] these are the latents' disentanglement and its weights, on the transpose the factors' completeness. All
    zero gives weights 0, so that the weighted score is 0. With one column a row that matters is concentrated: 1.
    """
    num_columns, total = importance.shape[1], importance.sum()
    share = (importance + TINY) / (importance + TINY).sum(axis=1, keepdims=True)
    nats = -(share * np.log(share)).sum(axis=1)
    concentrated = 1.0 - nats / np.log(num_columns) if num_columns > 1 else np.ones(len(importance))
    weight = importance.sum(axis=1) / total if total > 0 else np.zeros(len(importance))
    return concentrated, weight


def _boosted_trees(train: Labelled, test: Labelled, seed: int) -> tuple[Float64, Float64, Float64, tuple[str, ...]]:
    """(importance [D, K], test accuracy [K], train accuracy [K], notes)."""
    from sklearn.ensemble import GradientBoostingClassifier

    num_factors = len(train.kept)
    importance = np.zeros((train.codes.shape[1], num_factors))
    accuracy, train_accuracy = np.zeros(num_factors), np.zeros(num_factors)
    notes: tuple[str, ...] = ()
    for k in range(num_factors):
        trees = GradientBoostingClassifier(random_state=seed)
        trees, fit_notes = fit_with_notes(trees, train.codes, train.factors[:, k])
        notes += tuple(f"factor {train.kept[k]}: {note}" for note in fit_notes)
        importance[:, k] = np.abs(trees.feature_importances_)
        accuracy[k] = np.mean(trees.predict(test.codes) == test.factors[:, k])
        train_accuracy[k] = np.mean(trees.predict(train.codes) == train.factors[:, k])
    return importance, accuracy, train_accuracy, notes
