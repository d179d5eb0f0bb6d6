"""Chance level of a score: its values on shuffled rows, which keep the marginals and break the dependence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from metrics.arrays import Float64, Int64, check_count
from metrics.factors import Table, as_classes


@dataclass(frozen=True, eq=False)
class Baseline:
    """Chance level of a statistic of any shape S under shuffled factors.

    Args:
        mean: S, mean over the shuffles: subtract it to remove the bias of the estimator.
        threshold: the 95 % quantile over shuffles of the statistic's largest entry. A cell above it is unlikely to be
            chance, however many cells the table has.
        draws: [num_draws, *S].
    """

    mean: Float64
    threshold: float
    draws: Float64
    num_draws: int
    seed: int


def permutation_baseline(
    statistic: Callable[[Int64], Float64], factors: Table, *, num_shuffles: int = 20, seed: int
) -> Baseline:
    """Evaluate ``statistic(factors)`` on ``num_shuffles`` random orders of the rows of factors [N, K]."""
    check_count(num_shuffles, "num_shuffles")
    rows = as_classes(factors)
    rng = np.random.default_rng(seed)
    draws = np.stack([np.asarray(statistic(rows[rng.permutation(len(rows))]), np.float64) for _ in range(num_shuffles)])
    largest = draws.reshape(num_shuffles, -1).max(axis=1)
    return Baseline(draws.mean(axis=0), float(np.quantile(largest, 0.95)), draws, num_shuffles, seed)
