"""Reduction of a hierarchy's groups to a few numbers without labels, which makes it comparable with a flat code.

Groups are [N, C, H, W] or [N, D], top group first, and should hold residual means (:func:`residual_mean`). Everything
that is fitted (which channels, PCA, standardisation) is fitted on one half of the points; codes of the other half come
back, so that no score sees the points that shaped its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from metrics.arrays import EXTREME_EXPONENT, Array, Float64, Floats, Int64, as_floats, check_count, to_numpy
from metrics.linear import standardised

Kind = Literal["top", "pool", "moments", "pca", "flat"]
LARGEST_TOP = 32  # dims up to which a top group is scored flat


def residual_mean(posterior_mean: Array, prior_mean: Array, prior_std: Array) -> Floats:
    """(mu_q - mu_p) / sigma_p: the change that a group adds to the groups above, in prior stds; any equal shapes.

    Absolute means would repeat the information of the groups above.
    """
    mean, prior, std = (
        as_floats(to_numpy(values), name)
        for values, name in ((posterior_mean, "posterior_mean"), (prior_mean, "prior_mean"), (prior_std, "prior_std"))
    )
    if not mean.shape == prior.shape == std.shape:
        raise ValueError(
            f"shapes {mean.shape}, {prior.shape} and {std.shape} differ; give the three tensors of one group"
        )
    if std.min() <= 0:
        raise ValueError(f"prior_std holds {std.min():.3g}; give standard deviations above 0, not their logarithms")
    residual: Floats = (mean - prior) / std
    return residual


def as_groups(groups: Sequence[Array]) -> list[Floats]:
    """Groups checked and brought to [N, C, H, W]; [N, D] is D channels of one pixel.

    Where their largest magnitude is extreme, all are divided by one power of two, so that squares are finite.
    """
    arrays = [as_floats(group, f"groups[{i}]") for i, group in enumerate(groups)]
    if not arrays:
        raise ValueError("there are no groups; give at least one array [N, C, H, W] or [N, D]")
    for i, array in enumerate(arrays):
        if array.ndim not in (2, 4) or array.size == 0:
            raise ValueError(f"groups[{i}] has shape {array.shape}; give [N, C, H, W] or [N, D], not empty")
        if array.shape[0] != arrays[0].shape[0]:
            raise ValueError(f"groups[0] {arrays[0].shape} and groups[{i}] {array.shape} differ in their points")
    exponent = int(np.frexp(max(float(max(array.max(), -array.min())) for array in arrays))[1])
    if abs(exponent) > EXTREME_EXPONENT:
        arrays = [np.ldexp(array, -exponent) for array in arrays]
    return [array if array.ndim == 4 else array[:, :, None, None] for array in arrays]


def halves(num_points: int, seed: int) -> tuple[Int64, Int64]:
    """Two disjoint random halves of the points, ascending: one to fit on, one to score."""
    if num_points < 4:
        raise ValueError(f"{num_points} points cannot be split to fit and to score; give at least 4")
    order = np.random.default_rng(seed).permutation(num_points)
    return np.sort(order[: num_points // 2]), np.sort(order[num_points // 2 :])


@dataclass(frozen=True, eq=False)
class Reduced:
    """Codes of the scored half.

    Args:
        codes: [N/2, D], standardised with the mean and standard deviation of the other half.
        rows: [N/2], indices of these points.
    """

    codes: Float64
    rows: Int64
    kind: Kind
    seed: int
    notes: tuple[str, ...]


def reduce_groups(groups: Sequence[Array], kind: Kind, *, dim: int | None = 10, seed: int) -> Reduced:
    """Reduce groups to at most ``dim`` numbers; None keeps all.

    "top": the top group as it is, up to 32 dims. "pool": the mean of each channel over space. "moments": that mean and
    the channel's centroid x, y (of absolute values, in [-1, 1]). "pca": principal components of everything. "flat":
    everything as it is, to show why a reduction is needed. All but "pca" keep their axes: where there are more numbers than
    ``dim``, those of the channels that vary most (their spatial mean of variances) are kept.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is not known; choose one of {', '.join(get_args(Kind))}")
    arrays = as_groups(groups)
    if kind == "top":
        arrays = arrays[:1]
        if arrays[0][0].size > LARGEST_TOP:
            raise ValueError(
                f"the top group has {arrays[0][0].size} dims, more than {LARGEST_TOP}; use 'pool' or 'moments'"
            )
    fit, score = halves(len(arrays[0]), seed)
    if kind == "pca":
        codes: Floats = pca(np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1), fit, dim, seed)
    else:
        codes = _columns_of_active_channels(arrays, kind, fit, dim)
    missing = dim is not None and codes.shape[1] < dim
    notes = (f"only {codes.shape[1]} numbers are there, fewer than the {dim} asked for",) if missing else ()
    return Reduced(standardised(codes, fit)[score], score, kind, seed, notes)


def pca(features: Floats, fit: Int64, dim: int | None, seed: int) -> Float64:
    """Principal components [N, dim] of features [N, F], fitted on the rows ``fit``."""
    from sklearn.decomposition import PCA

    most = min(len(fit), features.shape[1])
    count = most if dim is None else min(check_count(dim, "dim"), most)
    solver = "randomized" if count < most // 2 and features.shape[1] > 500 else "full"
    model = PCA(n_components=count, svd_solver=solver, random_state=seed).fit(features[fit])
    components: Float64 = np.asarray(model.transform(features), dtype=np.float64)
    return components


def _columns_of_active_channels(arrays: list[Floats], kind: Kind, fit: Int64, dim: int | None) -> Floats:
    channels = [
        (a[:, c], float(a[fit, c].var(axis=0, dtype=np.float64).mean())) for a in arrays for c in range(a.shape[1])
    ]
    if dim is not None:
        check_count(dim, "dim")
        channels.sort(key=lambda channel: -channel[1])
    columns: list[Floats] = []
    num_columns = 0
    for values, _ in channels:
        columns.append(_channel_columns(values, kind))
        num_columns += columns[-1].shape[1]
        if dim is not None and num_columns >= dim:
            break
    return np.concatenate(columns, axis=1)[:, :dim]


def _channel_columns(values: Floats, kind: Kind) -> Floats:
    """One channel [N, H, W] -> [N, columns]."""
    if kind in ("top", "flat"):
        return np.asarray(values.reshape(len(values), -1))
    mean: Floats = values.mean(axis=(1, 2))
    if kind == "pool" or values[0].size == 1:
        return np.asarray(mean[:, None])
    weight = np.abs(values)
    total = weight.sum(axis=(1, 2))
    total = np.where(total > 0, total, 1.0)
    y, x = (np.linspace(-1.0, 1.0, size) if size > 1 else np.zeros(1) for size in values.shape[1:])
    return np.stack([mean, (weight.sum(axis=1) @ x) / total, (weight.sum(axis=2) @ y) / total], axis=1)
