"""Modularity and explicitness (Ridgeway & Mozer 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metrics.arrays import ACTIVE_VARIANCE, Array, Float64, Floats, labelled, labelled_split
from metrics.classifiers import fitted_logistic
from metrics.mutual_information import information
from metrics.reductions import standardised


@dataclass(frozen=True, eq=False)
class Modularity:
    """Whether each latent knows about one factor only.

    Args:
        score: mean over ALL latents, in [0, 1]; a dead latent counts 0, pure noise about .66.
        active_score: the same over active latents (variance of means above .01) alone; 0 where there is none.
        per_latent: [D].
        active: [D].
        mutual_information: [D, K] in nats, not divided by H.
    """

    score: float
    active_score: float
    per_latent: Float64
    active: npt.NDArray[np.bool_]
    mutual_information: Float64
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def modularity(codes: Array, factors: Array, *, bins: int = 20) -> Modularity:
    """1 - (sum_k I^2 - max_k I^2) / ((K-1) max_k I^2) for each latent of codes [N, D], with histogram I (Ridgeway & Mozer)."""
    data = labelled(codes, factors)
    found = information(data.codes, data.factors, bins=bins)
    squared = found.mutual_information**2
    largest = squared.max(axis=1)
    informed = largest > 0
    others = (squared.sum(axis=1) - largest) / max(squared.shape[1] - 1, 1)
    per_latent = np.where(informed, 1.0 - others / np.where(informed, largest, 1.0), 0.0)
    active = np.var(data.codes, axis=0, dtype=np.float64) > ACTIVE_VARIANCE
    notes = data.notes + found.notes
    if squared.shape[1] == 1:
        notes += ("there is one factor: every latent that knows anything is modular",)
    if not informed.all():
        notes += (f"{int((~informed).sum())} latents carry no information and count 0; see active_score",)
    return Modularity(
        score=float(per_latent.mean()),
        active_score=float(per_latent[active].mean()) if active.any() else 0.0,
        per_latent=per_latent,
        active=active,
        mutual_information=found.mutual_information,
        kept=data.kept,
        notes=notes,
    )


@dataclass(frozen=True, eq=False)
class Explicitness:
    """How well a linear classifier reads each factor, as area under the ROC curve.

    Args:
        score: mean over factors on test rows, chance .5, perfect 1 (the AUC itself, not 2 (AUC - .5)).
        train_score: the same on train rows.
        per_factor: [K] on test rows.
    """

    score: float
    train_score: float
    per_factor: Float64
    baseline: float
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]


def explicitness(
    codes: Array, factors: Array, test_codes: Array, test_factors: Array, *, seed: int = 0
) -> Explicitness:
    """One logistic regression per factor on standardised codes, one-vs-rest AUC per class, mean over classes, then factors.

    Constant latents are dropped. ``seed`` is passed to scikit-learn, whose default solver draws nothing.
    """
    train, test = labelled_split(codes, factors, test_codes, test_factors)
    varying = train.codes.min(axis=0) != train.codes.max(axis=0)
    notes = train.notes
    if not varying.all():
        notes += (f"{int((~varying).sum())} constant latents were dropped",)
    chance = np.full(len(train.kept), 0.5)
    if not varying.any():
        notes += ("all latents are constant: the score is chance",)
        return Explicitness(0.5, 0.5, chance, 0.5, train.kept, seed, notes)
    both = np.concatenate([train.codes[:, varying], test.codes[:, varying]])
    train_x, test_x = np.split(standardised(both, np.arange(len(train.codes))), [len(train.codes)])
    train_auc, test_auc = chance.copy(), chance.copy()
    for k in range(len(train.kept)):
        model, fit_notes = fitted_logistic(train_x, train.factors[:, k], seed=seed)
        train_auc[k], _ = _mean_auc(model.predict_proba(train_x), train.factors[:, k], model.classes_)
        test_auc[k], auc_notes = _mean_auc(model.predict_proba(test_x), test.factors[:, k], model.classes_)
        notes += tuple(f"factor {train.kept[k]}: {note}" for note in fit_notes + auc_notes)
    return Explicitness(float(test_auc.mean()), float(train_auc.mean()), test_auc, 0.5, train.kept, seed, notes)


def _mean_auc(
    probability: Floats, truth: npt.NDArray[np.int64], classes: npt.NDArray[np.int64]
) -> tuple[float, tuple[str, ...]]:
    """Unweighted mean over classes of the one-vs-rest AUC; classes that these rows lack have none."""
    from sklearn.metrics import roc_auc_score

    present = [i for i, c in enumerate(classes) if 0 < np.count_nonzero(truth == c) < len(truth)]
    if not present:
        return 0.5, ("these rows hold one class: AUC is undefined, chance is reported",)
    aucs = [roc_auc_score(truth == classes[i], probability[:, i]) for i in present]
    missing = len(classes) - len(present)
    notes = (f"{missing} classes do not occur in these rows and are left out of the mean",) if missing else ()
    return float(np.mean(aucs)), notes
