"""Interventional robustness score (Suter et al. 2019): a latent stays put while all factors but its own change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import Array, Float64, Floats, Int64, check_count
from metrics.discrete import prepare_labels
from metrics.factors import QUANTILE_BINS, Table, paired


@dataclass(frozen=True, eq=False)
class IRS:
    """IRS with its parts.

    Args:
        score: mean over latents of each one's best entry in ``matrix``, weighted by its largest deviation; in [0, 1].
        noise_level: the same with shuffled factors, i.e. the score of a code without information. It grows as
            ``quantile`` falls: .09 at 1 and .36 at .99 for 12,000 rows of noise about factors of 2, 3 and 5 values.
        per_latent: [D], 0 for constant latents.
        matrix: [D, K], 1 - (deviation from the latent's mean at each value of the factor) / largest deviation.
        factor_of_latent: [D], the factor of the best entry.
        max_deviation: [D], the weights.
    """

    score: float
    noise_level: float
    per_latent: Float64
    matrix: Float64
    factor_of_latent: Int64
    max_deviation: Float64
    quantile: float
    num_points: int
    num_shuffles: int
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]


def irs(codes: Array, factors: Table, *, quantile: float = 1.0, num_shuffles: int = 5, seed: int = 0) -> IRS:
    """IRS of codes [N, D] about factors [N, K] from observational rows, as disentanglement_lib estimates it.

    Args:
        codes: finite numbers; the scale of a latent is its weight.
        factors: classes; continuous factors are cut into quantile bins.
        quantile: quantile of the deviations within a value of the factor; 1, as in the paper, is their maximum. The
            library's default is .99, at which noise scores high.
        num_shuffles: number of shuffles of the factors, for the noise level.
        seed: seed of the shuffles.
    """
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile={quantile} is not possible; give a share above 0 and at most 1")
    check_count(num_shuffles, "num_shuffles", 0)
    data = paired(codes, factors)
    classes, notes = data.binned(QUANTILE_BINS)
    dense = prepare_labels(classes).dense
    largest = np.abs(data.codes - data.codes.mean(axis=0, dtype=np.float64)).max(axis=0)
    largest = np.where(data.codes.min(axis=0) == data.codes.max(axis=0), 0.0, largest)
    with np.errstate(over="ignore", under="ignore"):  # latents far below the largest one weigh nothing
        weight = np.ldexp(largest, data.exponents - data.exponents.max())
    matrix = _matrix(data.codes, dense, quantile, largest)
    rng, shuffled = np.random.default_rng(seed), []
    for _ in range(num_shuffles):
        order = rng.permutation(len(data))
        shuffled.append(_weighted(_matrix(data.codes, dense[:, order], quantile, largest).max(axis=1), weight))
    notes = data.notes + notes
    if (largest == 0).any():
        notes += (f"{int((largest == 0).sum())} constant latents weigh nothing",)
    return IRS(
        score=_weighted(matrix.max(axis=1), weight),
        noise_level=float(np.mean(shuffled)) if shuffled else 0.0,
        per_latent=matrix.max(axis=1),
        matrix=matrix,
        factor_of_latent=matrix.argmax(axis=1),
        max_deviation=weight,
        quantile=quantile,
        num_points=len(data),
        num_shuffles=num_shuffles,
        kept=data.kept,
        seed=seed,
        notes=notes,
    )


def _weighted(per_latent: Float64, weight: Float64) -> float:
    return float(per_latent @ weight / weight.sum()) if weight.sum() > 0 else 0.0


def _matrix(codes: Floats, dense: Int64, quantile: float, largest: Float64) -> Float64:
    """[N, D] codes and classes [K, N] -> [D, K]."""
    matrix = np.zeros((codes.shape[1], len(dense)))
    for k, labels in enumerate(dense):
        counts = np.bincount(labels)
        starts = np.cumsum(counts) - counts
        ordered = codes[np.argsort(labels, kind="stable")].astype(np.float64)
        means = np.add.reduceat(ordered, starts, axis=0) / counts[:, None]
        deviation = np.abs(ordered - np.repeat(means, counts, axis=0))
        if quantile == 1.0:
            reached = np.maximum.reduceat(deviation, starts, axis=0)
        else:
            parts = np.split(deviation, starts[1:])
            reached = np.stack([np.quantile(part, quantile, axis=0) for part in parts])
        matrix[:, k] = np.where(largest > 0, 1.0 - reached.mean(axis=0) / np.where(largest > 0, largest, 1.0), 0.0)
    return matrix
