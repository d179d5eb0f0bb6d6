"""Mean correlation coefficient: the correlation of each factor with the latent matched to it, one to one.

The score of nonlinear ICA (Hyvärinen & Morioka 2016; Khemakhem et al. 2020). Strong MCC takes the latents as they are;
weak MCC first maps them linearly, and asks for identifiability up to a linear map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from metrics.arrays import Array, Float64
from metrics.factors import Pairs, Table, paired
from metrics.linear import canonical_maps, correlations, least_squares, ranks
from metrics.reductions import halves

Correlation = Literal["pearson", "spearman"]
Mapping = Literal["linear", "cca"]


@dataclass(frozen=True, eq=False)
class MCC:
    """Mean correlation coefficient with its parts.

    Args:
        score: mean over factors of |correlation| with the matched latent, in [0, 1]; a factor without one counts 0.
        matching: pairs (latent, factor) of the best one-to-one assignment. After a mapping "latent" is a mapped
            dimension, and after "cca" both numbers count canonical pairs.
        per_factor: [K].
        matrix: [D', K], |correlation| of every latent, or mapped dimension, with every factor.
        num_points: rows that were scored. num_train: other rows, on which the map was fitted; 0 without one.
        kept: the factors' columns that K counts.
    """

    score: float
    matching: tuple[tuple[int, int], ...]
    per_factor: Float64
    matrix: Float64
    correlation: Correlation
    mapping: Mapping | None
    num_points: int
    num_train: int
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]


def mcc(
    codes: Array,
    factors: Table,
    *,
    correlation: Correlation = "pearson",
    mapping: Mapping | None = None,
    seed: int = 0,
) -> MCC:
    """MCC of codes [N, D] about factors [N, K]: the Hungarian assignment of latents to factors, also for D other than K.

    Args:
        codes: latents in any order, sign and scale.
        factors: classes count by their index, numbers as they are.
        correlation: "pearson", or "spearman", which is invariant to monotone warping.
        mapping: None for strong MCC. For weak MCC a map fitted on one random half of the rows and scored on the other:
            "linear" predicts the factors by least squares, "cca" maps codes and factors to their canonical pairs.
        seed: seed of the halves.

    Raises:
        ValueError: an unknown option, or codes or factors that cannot be scored.
    """
    _check_options(correlation, mapping)
    data = paired(codes, factors)
    latents, values, num_train, notes = _mapped(data, mapping, seed)
    matrix, matching, per_factor = _matched(latents, values, correlation)
    if len(matching) < len(per_factor):
        notes += (f"{len(per_factor) - len(matching)} factors have no latent left for them and count 0",)
    return MCC(
        score=float(per_factor.mean()),
        matching=matching,
        per_factor=per_factor,
        matrix=matrix,
        correlation=correlation,
        mapping=mapping,
        num_points=len(latents),
        num_train=num_train,
        kept=data.kept,
        seed=seed,
        notes=data.notes + notes,
    )


def _check_options(correlation: str, mapping: str | None) -> None:
    if correlation not in get_args(Correlation):
        raise ValueError(f"correlation={correlation!r} is not known; choose 'pearson' or 'spearman'")
    if mapping is not None and mapping not in get_args(Mapping):
        raise ValueError(f"mapping={mapping!r} is not known; choose None, 'linear' or 'cca'")


def _mapped(data: Pairs, mapping: Mapping | None, seed: int) -> tuple[Float64, Float64, int, tuple[str, ...]]:
    """(latents, factors, rows of the fit, notes) after the map, on the rows that are scored."""
    codes, values = data.codes.astype(np.float64), data.values
    if mapping is None:
        return codes, values, 0, ()
    fit, test = halves(len(data), seed)
    notes: tuple[str, ...] = ()
    if len(fit) <= 2 * codes.shape[1]:
        notes = (f"{len(fit)} rows fit a map of {codes.shape[1]} latents: it generalises badly, give more rows",)
    if mapping == "linear":
        return least_squares(codes, values, fit)[test], values[test], len(fit), notes
    mapped_codes, mapped_values = canonical_maps(codes, values, fit)
    return mapped_codes[test], mapped_values[test], len(fit), notes


def _matched(
    latents: Float64, values: Float64, correlation: Correlation
) -> tuple[Float64, tuple[tuple[int, int], ...], Float64]:
    """(|correlation| [D, K], the pairs of the best assignment, each factor's |correlation| in it [K])."""
    if correlation == "spearman":
        latents, values = ranks(latents), ranks(values)
    matrix = np.abs(correlations(latents, values))
    matching, per_factor = _assignment(matrix), np.zeros(matrix.shape[1])
    for d, k in matching:
        per_factor[k] = matrix[d, k]
    return matrix, matching, per_factor


def _assignment(matrix: Float64) -> tuple[tuple[int, int], ...]:
    """One-to-one pairs (row, column) of the largest sum, by column."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(matrix, maximize=True)
    return tuple(sorted(((int(d), int(k)) for d, k in zip(rows, columns, strict=True)), key=lambda pair: pair[1]))
