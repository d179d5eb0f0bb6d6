"""Explicitness (Ridgeway & Mozer 2018): how well a linear classifier reads each factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metrics.arrays import Array, Float64
from metrics.classifiers import fitted_logistic
from metrics.factors import Table, paired_split
from metrics.linear import ranks, standardised


@dataclass(frozen=True, eq=False)
class Explicitness:
    """Area under the ROC curve of a linear classifier for each factor.

    Args:
        score: mean over factors on test rows, chance .5, perfect 1 (the AUC itself, not 2 (AUC - .5)).
        train_score: the same on train rows.
        per_factor: [K] on test rows.
    """

    score: float
    train_score: float
    per_factor: Float64
    baseline: float
    num_train: int
    num_test: int
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]


def explicitness(
    codes: Array, factors: Table, test_codes: Array, test_factors: Table, *, seed: int = 0
) -> Explicitness:
    """One logistic regression per factor on standardised codes, one-vs-rest AUC per class, mean over classes, then factors.

    Constant latents are dropped. ``seed`` is passed to scikit-learn, whose default solver draws nothing.
    """
    train, test = paired_split(codes, factors, test_codes, test_factors)
    varying = train.codes.min(axis=0) != train.codes.max(axis=0)
    notes = train.notes
    if not varying.all():
        notes += (f"{int((~varying).sum())} constant latents were dropped",)
    chance = np.full(len(train.kept), 0.5)
    if not varying.any():
        notes += ("all latents are constant: the score is chance",)
        return Explicitness(0.5, 0.5, chance, 0.5, len(train), len(test), train.kept, seed, notes)
    both = np.concatenate([train.codes[:, varying], test.codes[:, varying]])
    train_x, test_x = np.split(standardised(both, np.arange(len(train.codes))), [len(train.codes)])
    train_auc, test_auc = chance.copy(), chance.copy()
    for k in range(len(train.kept)):
        model, fit_notes = fitted_logistic(train_x, train.classes[:, k], seed=seed)
        train_auc[k], _ = _mean_auc(model.predict_proba(train_x), train.classes[:, k], model.classes_)
        test_auc[k], auc_notes = _mean_auc(model.predict_proba(test_x), test.classes[:, k], model.classes_)
        notes += tuple(f"factor {train.kept[k]}: {note}" for note in fit_notes + auc_notes)
    return Explicitness(
        score=float(test_auc.mean()),
        train_score=float(train_auc.mean()),
        per_factor=test_auc,
        baseline=0.5,
        num_train=len(train),
        num_test=len(test),
        kept=train.kept,
        seed=seed,
        notes=notes,
    )


def _mean_auc(
    probability: Float64, truth: npt.NDArray[np.int64], classes: npt.NDArray[np.int64]
) -> tuple[float, tuple[str, ...]]:
    """Unweighted mean over classes of the one-vs-rest AUC; classes that these rows lack are left out."""
    shares = np.array([np.mean(truth == c) for c in classes])
    present = np.flatnonzero((shares > 0.0) & (shares < 1.0))
    if not present.size:
        return 0.5, ("these rows hold one class: AUC is undefined, chance is reported",)
    order = ranks(probability)
    areas = [_area(order[:, i], truth == classes[i]) for i in present]
    missing = len(classes) - len(present)
    notes = (f"{missing} classes do not occur in these rows and are left out of the mean",) if missing else ()
    return float(np.mean(areas)), notes


def _area(order: Float64, positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve from ranks [N]: the share of pairs in which the positive ranks higher (Mann & Whitney 1947)."""
    count = int(np.count_nonzero(positive))
    return float(order[positive].sum() - count * (count + 1) / 2.0) / (count * (len(order) - count))
