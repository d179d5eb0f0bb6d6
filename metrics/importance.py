"""Importance of each latent for predicting a factor, by four kinds of predictor; DCI is computed from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from metrics.arrays import Float64
from metrics.classifiers import fit_with_notes
from metrics.factors import Pairs
from metrics.linear import standardised

Regressor = Literal["trees", "lasso", "forest", "logistic"]
LASSO_ALPHA = 0.02
LOGISTIC_C = 0.1


@dataclass(frozen=True, eq=False)
class Fit:
    """A predictor of one factor.

    Args:
        weights: [D], importance of each latent.
        performance: on test rows: accuracy of a classifier, R2 of a regressor, at least 0.
        train_performance: on train rows.
    """

    weights: Float64
    performance: float
    train_performance: float
    notes: tuple[str, ...]


def fitted_importance(regressor: Regressor, train: Pairs, test: Pairs, k: int, seed: int) -> Fit:
    """Fit one factor. Classes are classified, numbers regressed; "lasso" regresses class indices as well."""
    column = train.table.columns[k]
    regress = regressor == "lasso" or column.dtype.kind == "f"
    features = [part.codes for part in (train, test)]
    if regressor in ("lasso", "logistic"):
        both = standardised(np.concatenate(features), np.arange(len(train)))
        features = [both[: len(train)], both[len(train) :]]
    targets = [np.asarray(part.table.columns[k], np.float64 if regress else None) for part in (train, test)]
    if not regress and targets[0].min() == targets[0].max():
        accuracy = [float(np.mean(target == targets[0][0])) for target in targets]
        return Fit(np.zeros(features[0].shape[1]), accuracy[1], accuracy[0], ("train rows hold one class",))
    model, notes = fit_with_notes(_estimator(regressor, regress, seed), features[0], targets[0])
    performance = [_performance(model.predict(x), y, regress) for x, y in zip(features, targets, strict=True)]
    return Fit(_weights(model), performance[1], performance[0], notes)


def _estimator(regressor: Regressor, regress: bool, seed: int) -> Any:
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        GradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.linear_model import Lasso, LogisticRegression

    if regressor == "lasso":
        return _ScaledTarget(Lasso(alpha=LASSO_ALPHA))
    if regressor == "logistic":
        return LogisticRegression(C=LOGISTIC_C, l1_ratio=1.0, solver="saga", max_iter=200, random_state=seed)
    if regressor == "forest":
        return (RandomForestRegressor if regress else RandomForestClassifier)(random_state=seed)
    return (GradientBoostingRegressor if regress else GradientBoostingClassifier)(random_state=seed)


class _ScaledTarget:
    """A regressor of the standardised target, so that its penalty does not depend on the factor's unit."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, features: Float64, target: Float64) -> None:
        """Fit in place."""
        self.mean, self.std = target.mean(), target.std()
        self.model.fit(features, (target - self.mean) / self.std)
        self.coef_ = self.model.coef_

    def predict(self, features: Float64) -> Float64:
        """Target of each row, in its own unit."""
        return np.asarray(self.model.predict(features) * self.std + self.mean)


def _weights(model: Any) -> Float64:
    """Importance of each latent: impurity decrease of trees, mean |coefficient| of linear models."""
    if hasattr(model, "feature_importances_"):
        return np.abs(np.asarray(model.feature_importances_, np.float64))
    return np.asarray(np.abs(np.atleast_2d(np.asarray(model.coef_, np.float64))).mean(axis=0))


def _performance(predicted: Float64, truth: Float64, regress: bool) -> float:
    if not regress:
        return float(np.mean(predicted == truth))
    variance = float(np.var(truth))
    return max(0.0, 1.0 - float(np.mean((predicted - truth) ** 2)) / variance) if variance > 0 else 0.0
