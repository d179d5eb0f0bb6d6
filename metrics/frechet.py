"""Scores of generated images on feature arrays: FID, KID, improved precision and recall, density and coverage.

Any features [N, F] will do; scores are comparable only if they come from the same extractor. :mod:`metrics.inception`
extracts such features from images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import Array, Float64, as_codes, check_count

ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Frechet:
    """Fréchet distance of Gaussians fitted to two sets of features; 0 for equal moments, no upper bound."""

    score: float
    mean_part: float
    covariance_part: float
    num_real: int
    num_generated: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class KernelDistance:
    """Squared MMD with the kernel (x.y/F + 1)^3: unbiased, so it may come out slightly below 0."""

    score: float
    standard_deviation: float
    num_draws: int
    subset_size: int
    seed: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """Nearest-neighbour scores; precision, recall and coverage in [0, 1], density may exceed 1. ``score`` = precision."""

    score: float
    precision: float
    recall: float
    density: float
    coverage: float
    neighbours: int
    notes: tuple[str, ...] = ()


def _features(real: Array, generated: Array) -> tuple[Float64, Float64]:
    first, second = as_codes(real, "real features"), as_codes(generated, "generated features")
    if first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            f"real {first.shape} and generated {second.shape} features do not fit; give [N, F] with one F and two rows or more"
        )
    return first.astype(np.float64), second.astype(np.float64)


def frechet_distance(real: Array, generated: Array) -> Frechet:
    """FID of feature arrays [N, F] and [M, F]: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017)."""
    first, second = _features(real, generated)
    mean_part = float(((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum())
    one, two = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (first, second))
    # tr (C1 C2)^(1/2) = tr (S C2 S)^(1/2) with S = C1^(1/2): symmetric, so no complex parts to throw away.
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0.0)).sum()
    covariance_part = max(0.0, float(np.trace(one) + np.trace(two) - 2.0 * cross))
    fewest, size = min(len(first), len(second)), first.shape[1]
    notes = (f"{fewest} rows for {size} features: the distance is biased upwards",) if fewest <= size else ()
    return Frechet(mean_part + covariance_part, mean_part, covariance_part, len(first), len(second), notes)


def kernel_distance(
    real: Array, generated: Array, *, seed: int, num_subsets: int = 100, subset_size: int = 1_000
) -> KernelDistance:
    """KID of feature arrays [N, F] and [M, F] (Bińkowski et al. 2018): mean over subsets of the unbiased squared MMD."""
    first, second = _features(real, generated)
    check_count(num_subsets, "num_subsets"), check_count(subset_size, "subset_size", 2)
    size, rng = min(subset_size, len(first), len(second)), np.random.default_rng(seed)
    draws = np.empty(num_subsets)
    for i in range(num_subsets):
        x, y = first[rng.choice(len(first), size, replace=False)], second[rng.choice(len(second), size, replace=False)]
        draws[i] = _off_diagonal_mean(_kernel(x, x)) + _off_diagonal_mean(_kernel(y, y)) - 2.0 * _kernel(x, y).mean()
    notes = (f"subsets hold {size} rows because no more were given",) if size < subset_size else ()
    return KernelDistance(float(draws.mean()), float(draws.std()), num_subsets, size, seed, notes)


def _kernel(x: Float64, y: Float64) -> Float64:
    kernel: Float64 = (x @ y.T / x.shape[1] + 1.0) ** 3
    return kernel


def _off_diagonal_mean(kernel: Float64) -> float:
    return float(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))


def precision_recall(real: Array, generated: Array, *, neighbours: int = 5) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of [N, F], [M, F].

    A point's ball reaches to its k-th nearest neighbour in its own set.
    """
    first, second = _features(real, generated)
    if not 1 <= neighbours < min(len(first), len(second)):
        raise ValueError(
            f"neighbours={neighbours} needs more rows than {min(len(first), len(second))}; give fewer neighbours"
        )
    real_radius, generated_radius = _radii(first, neighbours), _radii(second, neighbours)
    in_real, nearest = np.zeros(len(second)), np.full(len(first), np.inf)
    covered = np.zeros(len(first), dtype=np.bool_)
    for start in range(0, len(second), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        squared = _squared_distances(second[part], first)
        in_real[part] = (squared <= real_radius).sum(axis=1)
        nearest = np.minimum(nearest, squared.min(axis=0))
        covered |= (squared <= generated_radius[part, None]).any(axis=0)
    precision = float((in_real > 0).mean())
    return PrecisionRecall(
        score=precision,
        precision=precision,
        recall=float(covered.mean()),
        density=float(in_real.mean()) / neighbours,
        coverage=float((nearest <= real_radius).mean()),
        neighbours=neighbours,
    )


def _squared_distances(x: Float64, y: Float64) -> Float64:
    squared = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2.0 * x @ y.T
    return np.asarray(np.maximum(squared, 0.0))


def _radii(points: Float64, neighbours: int) -> Float64:
    """Squared distance of each point to its k-th nearest other point, [N]."""
    radii = np.empty(len(points))
    for start in range(0, len(points), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        # The point itself is the nearest of all, at 0.
        radii[part] = np.partition(_squared_distances(points[part], points), neighbours, axis=1)[:, neighbours]
    return radii
