"""The classifiers and regressors on which several scores are defined; scikit-learn's warnings become notes.

scikit-learn is imported where it is used: models import this package for the ELBO and should not wait for scikit-learn.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from metrics.arrays import Float64, Floats, Int64


class Classifier(Protocol):
    """Part of a fitted classifier that the scores use."""

    classes_: Int64

    def predict(self, features: Floats) -> Int64:
        """Class of each row."""

    def predict_proba(self, features: Floats) -> Float64:
        """Probability of each class, [N, classes]."""


class _Estimator(Protocol):
    def fit(self, features: Floats, labels: npt.NDArray[Any]) -> object:
        """Fit in place."""


E = TypeVar("E", bound=_Estimator)


def fit_with_notes(estimator: E, features: Floats, labels: npt.NDArray[Any]) -> tuple[E, tuple[str, ...]]:
    """Fit; warnings of the solver and of NumPy below it become notes."""
    from sklearn.exceptions import ConvergenceWarning

    name = type(estimator).__name__
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.fit(features, labels)
    notes: dict[str, None] = {}
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            notes[f"{name} stopped at its iteration limit (scikit-learn's default, as in other implementations)"] = None
        else:
            notes[f"{name} warns: {str(warning.message).splitlines()[0]}"] = None
    return estimator, tuple(notes)


class OneClass:
    """The only possible classifier if train rows hold one class."""

    def __init__(self, only: int) -> None:
        self.classes_: Int64 = np.array([only], dtype=np.int64)

    def predict(self, features: Floats) -> Int64:
        """The one class, for each row."""
        return np.repeat(self.classes_, len(features))

    def predict_proba(self, features: Floats) -> Float64:
        """Certainty, [N, 1]."""
        return np.ones((len(features), 1))


def fitted_logistic(features: Floats, labels: Int64, *, seed: int) -> tuple[Classifier, tuple[str, ...]]:
    """scikit-learn's LogisticRegression at its defaults (multinomial, lbfgs, C = 1, 100 iterations)."""
    from sklearn.linear_model import LogisticRegression

    if labels.min() == labels.max():
        return OneClass(int(labels[0])), ("train rows hold one class",)
    return fit_with_notes(LogisticRegression(random_state=seed), features, labels)
