"""Linear relations between codes [N, D] and factors [N, K]: correlation, least squares, canonical correlation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from metrics.arrays import Float64, Floats

Rows = npt.NDArray[np.int64] | slice


def standardised(codes: Floats, rows: Rows = slice(None)) -> Float64:
    """Columns [N, D] with the mean and standard deviation of the given rows; constant ones become 0."""
    chosen = codes[rows]
    centred = codes.astype(np.float64) - chosen.mean(axis=0, dtype=np.float64)
    varies = chosen.min(axis=0) != chosen.max(axis=0)  # a constant's deviation may round above 0
    return np.asarray(centred / np.where(varies, centred[rows].std(axis=0), np.inf))


def correlations(first: Float64, second: Float64) -> Float64:
    """Pearson correlation of each pair of columns, [N, D], [N, K] -> [D, K]; 0 where one is constant."""
    return np.asarray(np.clip(standardised(first).T @ standardised(second) / len(first), -1.0, 1.0))


def ranks(values: Float64) -> Float64:
    """Rank of each value in its column [N, D]; equal values share their mean rank."""
    ranked = np.empty(values.shape)
    for d, column in enumerate(values.T):
        _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
        ranked[:, d] = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    return ranked


def least_squares(codes: Float64, values: Float64, fit: Rows) -> Float64:
    """Predictions [N, K] of values from codes by the linear map with intercept that fits the rows ``fit`` best.

    If latents depend on each other, the smallest of the best maps is taken.
    """
    features, mean = standardised(codes, fit), values[fit].mean(axis=0)
    weights = np.linalg.lstsq(features[fit], values[fit] - mean, rcond=None)[0]
    return np.asarray(features @ weights + mean)


def canonical_correlations(codes: Float64, values: Float64) -> Float64:
    """Canonical correlations of [N, D] and [N, K], falling, as many as the smaller rank (Hotelling 1936)."""
    bases = [_whitened(side, slice(None))[0] for side in (codes, values)]
    return np.asarray(np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 0.0, 1.0))


def canonical_maps(codes: Float64, values: Float64, fit: Rows) -> tuple[Float64, Float64]:
    """Codes [N, D] and values [N, K] as canonical variates fitted on the rows ``fit``, both padded to [N, K].

    Pair i of columns is the i-th canonical pair; if there are fewer than K pairs, the rest is 0.
    """
    (code_basis, all_codes), (value_basis, all_values) = _whitened(codes, fit), _whitened(values, fit)
    left, _, right = np.linalg.svd(code_basis.T @ value_basis, full_matrices=False)
    missing = ((0, 0), (0, values.shape[1] - left.shape[1]))
    return np.pad(all_codes @ left, missing), np.pad(all_values @ right.T, missing)


def _whitened(values: Float64, fit: Rows) -> tuple[Float64, Float64]:
    """An orthonormal basis of the centred columns: ([fit rows, rank], [N, rank])."""
    features = standardised(values, fit)
    basis, scales, axes = np.linalg.svd(features[fit], full_matrices=False)
    rank = int(np.count_nonzero(scales > scales[0] * max(features[fit].shape) * np.finfo(np.float64).eps))
    return basis[:, :rank], features @ (axes[:rank].T / scales[:rank])
