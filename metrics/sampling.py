"""Batches of images that share a factor's value: drawn from the grid of factors, or from rows of codes and factors.

A sampled score on the grid asks for ``code_of: factors [n, K] -> codes [n, D]``, the encoder's MEAN at those factors (a
function: equal factors give equal codes). A point of the grid is one flat index; a draw that is uniform over the grid is
iid uniform per factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from metrics.arrays import Array, Floats, Int64, as_codes, as_sizes, usual_scale

CodeOf: TypeAlias = Callable[[Int64], Array]

POINTS_PER_CALL = 8192  # rows that code_of gets at once
LARGEST_TABLE = 2**28  # grids up to this size are marked in an array; larger ones are sorted


@dataclass(frozen=True, eq=False)
class Grid:
    """All combinations of factors of given ``sizes`` [K]; ``eligible`` factors take more than one value."""

    sizes: Int64
    strides: Int64
    total: int
    eligible: Int64

    @property
    def kept(self) -> tuple[int, ...]:
        """The eligible factors."""
        return tuple(int(k) for k in self.eligible)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that name the factors left out."""
        dropped = [k for k in range(len(self.sizes)) if self.sizes[k] == 1]
        return (f"factors {dropped} take one value only and were dropped",) if dropped else ()

    def factors(self, points: Int64) -> Int64:
        """Flat indices [n] -> factors [n, K]."""
        return np.asarray(np.unravel_index(points, tuple(self.sizes.tolist())), dtype=np.int64).T

    def fix(self, points: Int64, factor: Int64, value: Int64) -> Int64:
        """The same points with one factor set to a value; all arguments broadcast."""
        stride = self.strides[factor]
        return np.asarray(points + (value - points // stride % self.sizes[factor]) * stride, dtype=np.int64)


def make_grid(factor_sizes: Sequence[int] | Array) -> Grid:
    """The grid of factors of the given sizes. Raises ValueError for sizes that make no grid."""
    sizes = as_sizes(factor_sizes)
    strides = np.append(np.cumprod(sizes[:0:-1])[::-1], 1).astype(np.int64)
    return Grid(sizes, strides, int(np.prod(sizes)), np.flatnonzero(sizes > 1))


def draw_fixed(
    grid: Grid, num: int, batch_size: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.intp], Int64, Int64, Int64]:
    """``num`` batches of uniform points [num, batch_size], and for each batch a random factor to fix.

    Returns (which eligible factor [num], that factor's column [num, 1], a random value of it [num, 1], points).
    """
    label = rng.integers(len(grid.eligible), size=num)
    factor = grid.eligible[label][:, None]
    value = rng.integers(grid.sizes[factor])
    return label, factor, value, rng.integers(grid.total, size=(num, batch_size))


def encode_once(code_of: CodeOf, grid: Grid, *points: Int64) -> tuple[Floats, list[Int64]]:
    """Codes of all distinct points, each asked for once: (table [U, D], the rows of the table for each array of points).

    The table is U x D numbers: for thousands of latents at default counts reduce the codes first.
    """
    if grid.total <= LARGEST_TABLE:
        occurs = np.zeros(grid.total, dtype=np.bool_)
        for array in points:
            occurs[array] = True
        distinct = np.flatnonzero(occurs)
        row_of = np.empty(grid.total, dtype=np.int64)
        row_of[distinct] = np.arange(len(distinct))
        rows = [row_of[array] for array in points]
    else:
        distinct = np.unique(np.concatenate([array.reshape(-1) for array in points]))
        rows = [np.searchsorted(distinct, array) for array in points]
    return _encode(code_of, grid, distinct), rows


def encode_grid(code_of: CodeOf, factor_sizes: Sequence[int] | Array) -> tuple[Floats, Int64]:
    """Codes [total, D] and factors [total, K] of the whole grid, last factor fastest."""
    grid = make_grid(factor_sizes)
    points = np.arange(grid.total)
    return _encode(code_of, grid, points), grid.factors(points)


def _encode(code_of: CodeOf, grid: Grid, distinct: Int64) -> Floats:
    table: Floats | None = None
    for start in range(0, len(distinct), POINTS_PER_CALL):
        asked = distinct[start : start + POINTS_PER_CALL]
        codes = as_codes(code_of(grid.factors(asked)), "what code_of returned")
        if table is None:
            table = np.empty((len(distinct), codes.shape[1]), dtype=codes.dtype)
        if codes.shape != (len(asked), table.shape[1]):
            raise ValueError(
                f"code_of returned shape {codes.shape} for {len(asked)} rows of factors; "
                f"it must return ({len(asked)}, {table.shape[1]}), one code per row"
            )
        table[start : start + len(asked)] = codes
    assert table is not None, "a grid has at least one point"
    return usual_scale(table, "what code_of returned")


@dataclass(frozen=True, eq=False)
class Trials:
    """Batches of images that each hold one factor, for metrics that ask which factor it was.

    Args:
        table: [U, D], codes of the images.
        labels: [P], the factor held in each batch, as a position in ``kept``.
        num_train: number of batches to fit on, the first ones; the others are scored.
        kept: the factors that take more than one value.
    """

    table: Floats
    labels: Int64
    num_train: int
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]

    @property
    def baseline(self) -> float:
        """Accuracy of a guess."""
        return 1.0 / len(self.kept)

    def accuracy(self, named: Int64) -> tuple[float, float]:
        """Share of batches whose factor was named [P] correctly: (of those scored, of those fitted)."""
        correct = named == self.labels
        return float(correct[self.num_train :].mean()), float(correct[: self.num_train].mean())


@dataclass(frozen=True, eq=False)
class RowSampler:
    """Rows of a table by the value of one factor: ``order`` [K, N] sorts the rows by class.

    The other factors vary as they do among the rows, so that factors which depend on each other stay dependent.
    """

    classes: Int64
    order: Int64
    starts: list[Int64]

    def partners(self, rows: Int64, label: Int64, rng: np.random.Generator) -> Int64:
        """Draw for each of ``rows`` [P, L] a row with the same class of its batch's factor ``label`` [P], with replacement."""
        found = np.empty_like(rows)
        for k, starts in enumerate(self.starts):
            batches = np.flatnonzero(label == k)
            value = self.classes[rows[batches], k]
            found[batches] = self.order[k][rng.integers(starts[value], starts[value + 1])]
        return found


def sample_rows(classes: Int64) -> RowSampler:
    """Build the sampler of factors [N, K] with classes 0..n_k-1."""
    order = np.argsort(classes.T, axis=1, kind="stable")
    starts = [np.concatenate([[0], np.cumsum(np.bincount(column))]) for column in classes.T]
    return RowSampler(classes, order, starts)
