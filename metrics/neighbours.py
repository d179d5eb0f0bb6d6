"""Mutual information of a number with a class, or with a number, from distances to nearest neighbours; in nats."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from metrics.arrays import Float64, Int64

EULER = 0.5772156649015329
JITTER = 1e-10  # standard deviations: equal values have no order, and a neighbour at distance 0 gives no radius


def jittered(values: Float64, rng: np.random.Generator) -> Float64:
    """Columns [N, D] over their standard deviation, with noise so small that it only breaks ties."""
    std = values.std(axis=0)
    scaled = values / np.where(std > 0, std, 1.0)
    size = np.maximum(1.0, np.abs(scaled).mean(axis=0))
    return np.asarray(scaled + JITTER * size * rng.standard_normal(scaled.shape))


def information_with_class(latent: Float64, labels: Int64, neighbours: int) -> float:
    """I(latent [N]; class [N]), at least 0 (Ross 2014).

    A point's radius reaches to its ``neighbours``-th neighbour in its own class; the more points of other classes lie
    within it, the less the latent tells about the class. Classes of one point are left out.
    """
    digamma = _digamma(len(latent) + 1)
    radius = np.zeros(len(latent))
    own, within = np.zeros(len(latent), dtype=np.int64), np.zeros(len(latent), dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) > 1:
            count = min(neighbours, len(members) - 1)
            by_value = members[np.argsort(latent[members], kind="stable")]
            radius[by_value] = _distances(latent[by_value], count)
            own[members], within[members] = len(members), count
    kept = own > 0
    points = latent[kept]
    if not points.size:
        return 0.0
    inside = _count_within(points, radius[kept])
    nats = digamma[points.size] + np.mean(digamma[within[kept]] - digamma[own[kept]] - digamma[inside])
    return max(0.0, float(nats))


def information_with_number(latent: Float64, values: Float64, neighbours: int) -> float:
    """I(latent [N]; value [N]), at least 0 (Kraskov et al. 2004, first estimator)."""
    from scipy.spatial import KDTree

    digamma = _digamma(len(latent) + 1)
    both, count = np.stack([latent, values], axis=1), min(neighbours, len(latent) - 1)
    radius = KDTree(both).query(both, k=[count + 1], p=np.inf)[0][:, 0]
    inside = digamma[_count_within(latent, radius)] + digamma[_count_within(values, radius)]
    return max(0.0, float(digamma[len(latent)] + digamma[count] - inside.mean()))


def _digamma(size: int) -> Float64:
    """Digamma of 0 (unused), 1, ..., size: psi(n) = sum of 1/i below n - Euler's constant."""
    return np.concatenate([[np.nan, 0.0], np.cumsum(1.0 / np.arange(1, size))]) - EULER


def _distances(ordered: Float64, count: int) -> Float64:
    """Distance of each of the ascending values to its ``count``-th neighbour: a window of count + 1 values around it."""
    size = len(ordered)
    distance = np.full(size, np.inf)
    for below in range(count + 1):
        above = count - below
        inner = ordered[below : size - above]
        reach = np.maximum(inner - ordered[: size - count], ordered[count:] - inner)
        distance[below : size - above] = np.minimum(distance[below : size - above], reach)
    return distance


def _count_within(values: Float64, radius: Float64) -> npt.NDArray[np.intp]:
    """Number of values, including itself, that lie nearer to each value than its radius."""
    ordered = np.sort(values)
    # Below the radius by more than rounding: the neighbour that set it must not count itself.
    reach = radius - 4.0 * np.spacing(max(abs(ordered[0]), abs(ordered[-1])))
    above = np.searchsorted(ordered, values + reach, side="right")
    return np.asarray(np.maximum(above - np.searchsorted(ordered, values - reach, side="left"), 1))
