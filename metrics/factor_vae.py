"""The FactorVAE metric (Kim & Mnih 2018): the latent that varies least tells which factor was held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metrics.arrays import Array, Float64, Floats, Int64, check_counts
from metrics.factors import Table, paired
from metrics.sampling import CodeOf, Trials, draw_fixed, encode_once, make_grid, sample_rows

NUMBERS_AT_ONCE = 2**18  # of codes gathered from the table, so that the working set stays in cache


@dataclass(frozen=True, eq=False)
class FactorVAEMetric:
    """Accuracy of the majority vote.

    Args:
        score: on fresh votes, in [1/K, 1]; 1/K where every latent is pruned.
        train_score: on the votes that made the table.
        votes: [D, K], train votes of each latent for each factor; its row's maximum is the table d -> k.
        pruned: [D], latents that take no part: constant, or std at most ``prune_std`` times the prior's.
        global_variance: [D], ddof 1.
        baseline: 1/K.
        num_draws: number of images drawn, num_distinct: number of different ones, each encoded once.
    """

    score: float
    train_score: float
    votes: Int64
    pruned: npt.NDArray[np.bool_]
    global_variance: Float64
    baseline: float
    num_draws: int
    num_distinct: int
    seed: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def factor_vae_metric(
    code_of: CodeOf,
    factor_sizes: Sequence[int] | Array,
    *,
    seed: int,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    batch_size: int = 64,
    num_variance: int = 10_000,
    prune_std: float = 0.05,
    prior_std: float = 1.0,
) -> FactorVAEMetric:
    """Votes argmin_d Var_batch / Var_global over batches of images that share one factor's value.

    A latent whose std is at most ``prune_std * prior_std`` is pruned: .05 of a standard-normal prior is the published
    threshold (disentanglement_lib); ``prune_std=0`` prunes only exactly constant latents, which otherwise would give
    0/0 and take every vote. For codes on another scale than the prior's, give ``prior_std``.
    """
    check_counts(num_train=num_train, num_eval=num_eval)
    check_counts(2, batch_size=batch_size, num_variance=num_variance)
    grid, rng = make_grid(factor_sizes), np.random.default_rng(seed)
    anywhere = rng.integers(grid.total, size=num_variance)
    labels, factor, held, points = draw_fixed(grid, num_train + num_eval, batch_size, rng)
    table, (rows_anywhere, rows) = encode_once(code_of, grid, anywhere, grid.fix(points, factor, held))
    trials = Trials(table, labels, num_train, grid.kept, seed, grid.notes)
    return _scored(trials, rows, table[rows_anywhere], _Pruning(prune_std, prior_std))


def factor_vae_of_rows(
    codes: Array,
    factors: Table,
    *,
    seed: int = 0,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    batch_size: int = 64,
    prune_std: float = 0.05,
    prior_std: float = 1.0,
) -> FactorVAEMetric:
    """:func:`factor_vae_metric` of given codes [N, D] and factors [N, K], for data without a grid to encode.

    A batch holds rows with the same class of a factor, drawn with replacement; the other factors vary as they do among
    the rows. Variances come from all rows.
    """
    check_counts(num_train=num_train, num_eval=num_eval)
    check_counts(2, batch_size=batch_size)
    data, rng = paired(codes, factors, any_scale=False), np.random.default_rng(seed)
    labels = rng.integers(len(data.kept), size=num_train + num_eval)
    anchor = np.broadcast_to(rng.integers(len(data), size=(len(labels), 1)), (len(labels), batch_size))
    rows = sample_rows(data.classes).partners(anchor, labels, rng)
    trials = Trials(data.codes, labels, num_train, data.kept, seed, data.notes)
    return _scored(trials, rows, data.codes, _Pruning(prune_std, prior_std))


@dataclass(frozen=True)
class _Pruning:
    std: float
    prior_std: float

    def __post_init__(self) -> None:
        if not (self.std >= 0 and self.prior_std > 0):
            raise ValueError(
                f"prune_std={self.std}, prior_std={self.prior_std} are not possible; give at least 0 and above 0"
            )


def _scored(trials: Trials, rows: Int64, sample: Floats, pruning: _Pruning) -> FactorVAEMetric:
    """Vote over batches of ``rows`` [P, L] of the table; ``sample`` gives the global variances."""
    variance = sample.var(axis=0, ddof=1, dtype=np.float64)
    # "At most" and not "below": with prune_std=0 this is the constant latents, whose variance may round above 0.
    pruned = (np.sqrt(variance) <= pruning.std * pruning.prior_std) | (sample.min(axis=0) == sample.max(axis=0))
    votes = np.zeros((len(variance), len(trials.kept)), dtype=np.int64)
    score, train_score, notes = trials.baseline, trials.baseline, trials.notes
    if pruned.any():
        notes += (f"{int(pruned.sum())} latents with std at most {pruning.std} x {pruning.prior_std} take no part",)
    if pruned.all():
        notes += ("every latent is pruned: the score is chance",)
    else:
        winner = np.flatnonzero(~pruned)[_least_varying(trials.table, rows, variance, ~pruned)]
        np.add.at(votes, (winner[: trials.num_train], trials.labels[: trials.num_train]), 1)
        score, train_score = trials.accuracy(votes.argmax(axis=1)[winner])
    return FactorVAEMetric(
        score=score,
        train_score=train_score,
        votes=votes,
        pruned=pruned,
        global_variance=variance,
        baseline=trials.baseline,
        num_draws=len(sample) + rows.size,
        num_distinct=len(trials.table),
        seed=trials.seed,
        kept=trials.kept,
        notes=notes,
    )


def _least_varying(
    table: Floats, rows: Int64, variance: Float64, taking_part: npt.NDArray[np.bool_]
) -> npt.NDArray[np.intp]:
    """Among latents that take part, the one with the least variance ratio in each batch: rows [P, L] -> [P]."""
    table = np.ascontiguousarray(table[:, taking_part])
    num_points, batch_size = rows.shape
    winner = np.empty(num_points, dtype=np.intp)
    step = max(1, NUMBERS_AT_ONCE // (batch_size * table.shape[1]))
    for start in range(0, num_points, step):
        batch = table.take(rows[start : start + step], axis=0)  # [P, L, D]
        batch -= batch.mean(axis=1, keepdims=True)
        spread = np.einsum("pld,pld->pd", batch, batch) / (batch_size - 1)
        winner[start : start + step] = (spread / variance[taking_part]).argmin(axis=1)
    return winner
