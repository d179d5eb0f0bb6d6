"""Bins and discrete mutual information, in nats: one bincount per latent over all factors.

The default bins are those that the published histogram scores use: edges as ``numpy.histogram`` puts them between a latent's
minimum and maximum, in the latent's own dtype (float64 edges would move codes that sit on an edge), the last bin
closed. Bins of equal count ("quantile") do not depend on outliers. Time and memory are linear in points and in latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from metrics.arrays import Array, Float64, Floats, Int64, as_codes, check_count
from metrics.factors import dense

COLUMNS_AT_ONCE = 64  # transposed together, so that each cache line of a row-major array is read once
PACKED_CLASSES = 1024  # factors counted jointly up to this many combinations: fewer passes, tables that fit a cache
MAX_BINS = 2**16
MIN_ULPS_PER_BIN = 256.0  # narrower bins are searched, because rounding could move the division by more than one bin
LATENTS_AT_ONCE = 8  # latents whose joint counts are in memory together
ROWS_COUNTED = 2_000  # about this many evenly spread points show if a bin is crowded
CROWDED_SHARE = 0.9  # of the points in one bin: the others hold too few to tell anything

Binning = Literal["width", "quantile"]
Bins = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def bin_codes(codes: Array, bins: int = 20, binning: Binning = "width") -> Bins:
    """Bin index of every code: [N, D] -> [D, N] in 0..bins-1, rows contiguous. A constant latent falls into bin 0.

    ``binning`` "width" makes bins of equal width, "quantile" bins of nearly equal count (equal codes share a bin).
    """
    array = as_codes(codes)
    if binning not in get_args(Binning):
        raise ValueError(f"binning={binning!r} is not known; choose 'width' or 'quantile'")
    if not 2 <= check_count(bins, "bins") <= MAX_BINS:
        raise ValueError(f"bins={bins} is not possible; give 2 to {MAX_BINS}")
    dtype = np.uint8 if bins <= 256 else np.uint16
    binned = np.empty((array.shape[1], array.shape[0]), dtype=dtype)
    for start in range(0, array.shape[1], COLUMNS_AT_ONCE):
        for row, latent in enumerate(np.ascontiguousarray(array[:, start : start + COLUMNS_AT_ONCE].T), start):
            binned[row] = _bin_latent(latent, bins) if binning == "width" else _quantile_bins(latent, bins)
    return binned


def _quantile_bins(latent: Floats, bins: int) -> Int64:
    ordered = np.sort(latent)
    edges = ordered[np.arange(1, bins) * len(latent) // bins]
    return np.searchsorted(edges, latent, side="right").astype(np.int64, copy=False)


def crowded_note(binned: Bins, bins: int, binning: Binning = "width") -> tuple[str, ...]:
    """A note if one bin holds nearly all points of a varying latent, because outliers stretch its range."""
    some = binned[:, :: max(1, binned.shape[1] // ROWS_COUNTED)]
    # A latent that repeats may show a single value in evenly spread rows, so all rows decide.
    suspects = [d for d, latent in enumerate(some) if _largest_share(latent, bins) >= CROWDED_SHARE]
    shares = {d: _largest_share(binned[d], bins) for d in suspects}
    crowded = {d: share for d, share in shares.items() if CROWDED_SHARE <= share < 1.0}
    if not crowded:
        return ()
    which = ", ".join(map(str, list(crowded)[:8])) + (", ..." if len(crowded) > 8 else "")
    remedy = "; binning='quantile' does not depend on outliers" if binning == "width" else ""
    return (f"one bin holds up to {max(crowded.values()):.2%} of the points in latents {which}{remedy}",)


def _largest_share(latent: npt.NDArray[np.integer[Any]], bins: int) -> float:
    return float(np.bincount(latent, minlength=bins).max() / len(latent))


def _bin_latent(latent: Floats, bins: int) -> Int64 | int:
    low, high = latent.min(), latent.max()
    if low == high:
        return 0
    with np.errstate(over="ignore"):
        too_wide = not np.isfinite(high - low)
    if too_wide:  # the range itself overflows this dtype
        return _bin_latent(latent.astype(np.float64) / 4.0, bins)
    edges = np.linspace(low, high, bins + 1, dtype=latent.dtype)
    width = (high - low) / bins
    if width < MIN_ULPS_PER_BIN * np.spacing(max(abs(low), abs(high))):
        return np.searchsorted(edges[1:-1], latent, side="right").astype(np.int64, copy=False)
    # A division finds the bin to within one, comparison with the edges decides: four times as fast as a search.
    index: Int64 = np.minimum((latent - low) / width, bins - 1).astype(np.int64)
    index -= latent < edges[index]
    edges[-1] = np.inf  # the last bin is closed
    index += latent >= edges[index + 1]
    return index


@dataclass(frozen=True, eq=False)
class Labels:
    """Factors made ready for counting.

    Args:
        values: per factor the class values that occur, ascending.
        dense: [K, N], each factor relabelled 0..n_k-1 in that order.
        packs: sets of factors that are counted jointly.
        packed: [packs, N], one mixed-radix label per pack, offset so that no two packs share a label.
    """

    values: list[Int64]
    dense: Int64
    packs: list[list[int]]
    packed: Int64

    @property
    def sizes(self) -> list[int]:
        """Number of classes of each factor that occur."""
        return [len(v) for v in self.values]


def prepare_labels(factors: Int64 | Sequence[Int64]) -> Labels:
    """Relabel factors, [N, K] or K columns [N], densely and pack small ones together."""
    given = factors.T if isinstance(factors, np.ndarray) else factors
    columns = [dense(np.ascontiguousarray(column)) for column in given]
    values, rows = [v for v, _ in columns], np.stack([labels for _, labels in columns])
    packs: list[list[int]] = []
    room = 0
    for k, size in enumerate(map(len, values)):
        if packs and size <= room:
            packs[-1].append(k)
        else:
            packs.append([k])
            room = PACKED_CLASSES
        room //= size
    packed = np.empty((len(packs), rows.shape[1]), dtype=np.int64)
    offset = 0
    for row, pack in enumerate(packs):
        sizes = [len(values[k]) for k in pack]
        packed[row] = offset + np.ravel_multi_index([rows[k] for k in pack], sizes)
        offset += math.prod(sizes)
    return Labels(values, rows, packs, packed)


def mutual_information(binned: Bins, labels: Labels, bins: int) -> Float64:
    """I(latent d; factor k) in nats from the joint histogram: [D, N] bin indices and K factors -> [D, K], at least 0."""
    num_latents, num_points = binned.shape
    if num_points != labels.dense.shape[1]:
        raise ValueError(f"binned codes {binned.shape} and factors {labels.dense.T.shape} differ in their points")
    n_log_n = _n_log_n(num_points)
    scaled = labels.packed * bins
    index = np.empty_like(scaled)
    num_cells = sum(math.prod(labels.sizes[k] for k in pack) for pack in labels.packs) * bins
    information = np.empty((num_latents, len(labels.values)))
    for start in range(0, num_latents, LATENTS_AT_ONCE):
        block = binned[start : start + LATENTS_AT_ONCE]
        cells = np.empty((len(block), num_cells), dtype=np.int64)
        for row, latent in zip(cells, block, strict=True):
            np.add(scaled, latent.astype(np.int64), out=index)  # a sum of two types would go through a buffer
            row[:] = np.bincount(index.reshape(-1), minlength=num_cells)
        information[start : start + LATENTS_AT_ONCE] = _information_of_cells(cells, labels, bins, n_log_n)
    return information


def _information_of_cells(cells: Int64, labels: Labels, bins: int, n_log_n: Float64) -> Float64:
    """I = H(v) + H(bin) - H(v, bin) from the counts of all packs, [latents, cells] -> [latents, K].

    Counts are sorted before they are summed, so that the order of bins does not reach the last digit: mirrored latents
    tie exactly.
    """
    num_points = len(n_log_n) - 1
    information = np.empty((len(cells), len(labels.values)))
    first_pack = cells[:, : math.prod(labels.sizes[k] for k in labels.packs[0]) * bins]
    per_bin = first_pack.reshape(len(cells), -1, bins).sum(axis=1)  # the same in every pack
    bin_sum = n_log_n[np.sort(per_bin, axis=1)].sum(axis=1)
    constant = np.count_nonzero(per_bin, axis=1) == 1  # exactly 0, not 0 to rounding
    start = 0
    for pack in labels.packs:
        sizes = [labels.sizes[k] for k in pack]
        stop = start + math.prod(sizes) * bins
        table = cells[:, start:stop].reshape(len(cells), *sizes, bins)
        start = stop
        for axis, k in enumerate(pack):
            joint = table.sum(axis=tuple(1 + a for a in range(len(pack)) if a != axis))  # [latents, n_k, bins]
            joint_sum = n_log_n[np.sort(joint.reshape(len(cells), -1), axis=1)].sum(axis=1)
            nats = joint_sum - bin_sum - n_log_n[joint[0].sum(axis=1)].sum() + n_log_n[-1]
            information[:, k] = np.where(constant, 0.0, np.maximum(nats / num_points, 0.0))
    return information


def _n_log_n(num_points: int) -> Float64:
    """n log n for n = 0..num_points: a look-up is faster than a logarithm for every cell."""
    n = np.arange(num_points + 1, dtype=np.float64)
    n[1:] *= np.log(n[1:])
    return n


def entropy(labels: Labels) -> Float64:
    """Empirical entropy H(v_k) in nats, [K]."""
    n_log_n = _n_log_n(labels.dense.shape[1])
    sums = [n_log_n[np.bincount(row)].sum() for row in labels.dense]
    return np.asarray((n_log_n[-1] - np.asarray(sums)) / labels.dense.shape[1])


def bin_factors(labels: Labels, bins: int, binning: Binning = "width") -> Bins:
    """The factors themselves as perfect latents, binned: [K, N]. For equal widths only the classes are binned.

    Classes count as 0, 1, 2, ... whatever their labels, because a perfect code need not copy gaps between labels.
    """
    if binning == "quantile":
        return bin_codes(labels.dense.T.astype(np.float64), bins, binning)
    rows = [
        bin_codes(np.arange(size, dtype=np.float64)[:, None], bins)[0][row]
        for size, row in zip(labels.sizes, labels.dense, strict=True)
    ]
    return np.stack(rows)


def top_two_gap(values: Float64, axis: int = 0) -> Float64:
    """Largest minus second largest along an axis; a single value is its own gap."""
    if values.shape[axis] == 1:
        return np.asarray(values.sum(axis=axis))
    ordered = np.partition(values, values.shape[axis] - 2, axis=axis)
    return np.asarray(np.take(ordered, -1, axis=axis) - np.take(ordered, -2, axis=axis))
