"""Distance of generated images from a completely known data set: precision and coverage without an extractor.

If every image that exists can be listed (dSprites: 737,280), the nearest one to a sample is found exactly, and the
quality of the sample can be judged without a feature network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from metrics.arrays import Array, Int64, as_factors, as_sizes, same_rows, to_numpy

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int16]

PIXELS = (0, 5, 10, 20, 40)
"""Distances at which precision is stated by default."""
NUM_REGIONS = 16
FIRST_LOOK = 16_384
FIRST_CANDIDATES = 256
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, eq=False)
class NearestImages:
    """The nearest image of a bank to each query: its row ``index`` [N] and the ``distance`` [N] in pixels that differ."""

    index: Int64
    distance: Int64


@dataclass(frozen=True, eq=False)
class NearestScores:
    """Precision of samples at several distances and the factor values they cover; ``score`` = precision at ``within``.

    Args:
        score: share of samples that differ from some real image in at most ``within`` pixels.
        within: the distance of ``score``, pixels.
        distances: the stated distances, pixels.
        precision: share of samples within each of them.
        median_distance: of all samples, pixels.
        coverage: for each factor, the share of its values that occur among the nearest images of samples within ``within``.
        value_shares: for each factor, the shares of its values among these samples; sums to 1, or all 0 without such samples.
        num_samples: rows.
        notes: warnings for the reader.
    """

    score: float
    within: int
    distances: tuple[int, ...]
    precision: tuple[float, ...]
    median_distance: float
    coverage: tuple[float, ...]
    value_shares: tuple[tuple[float, ...], ...]
    num_samples: int
    notes: tuple[str, ...] = ()


def _counts(words: Words) -> Counts:
    """White pixels in each of at most 16 regions of consecutive words, [N, regions]."""
    regions = np.array_split(np.bitwise_count(words), min(NUM_REGIONS, words.shape[1]), axis=1)
    return np.stack([region.sum(axis=1, dtype=np.int16) for region in regions], axis=1)


class ImageBank:
    """All images of a binary data set, bit-packed, ready for exact searches.

    Args:
        packed: uint8 [M, bytes], each row the image's pixels through ``numpy.packbits``; a memory map will do.

    Raises:
        ValueError: another type or shape, or no images.
    """

    def __init__(self, packed: npt.NDArray[np.uint8]) -> None:
        if packed.ndim != 2 or packed.size == 0 or packed.dtype != np.uint8 or packed.shape[1] % 8:
            raise ValueError(
                f"the bank is {packed.dtype} {packed.shape}; give uint8 [M, bytes] from numpy.packbits, "
                "bytes a multiple of 8 and at least one image"
            )
        self.words: Words = packed.view(np.uint64)
        starts = range(0, len(packed), ROWS_AT_ONCE)
        counts = np.concatenate([_counts(self.words[start : start + ROWS_AT_ONCE]) for start in starts])
        areas = counts.sum(axis=1, dtype=np.int64)
        self._order = np.argsort(areas, kind="stable")  # the search considers only images of about the same area
        self._areas, self._sorted_counts = areas[self._order], np.ascontiguousarray(counts[self._order].T)

    def __len__(self) -> int:
        return len(self.words)

    def _distances(self, places: Int64, words: Words) -> Int64:
        """Pixels in which one image differs from the images at these places of the order."""
        parts = np.split(self._order[places], range(ROWS_AT_ONCE, len(places), ROWS_AT_ONCE))
        return np.concatenate(
            [np.bitwise_count(self.words[part] ^ words).sum(axis=1, dtype=np.int64) for part in parts]
        )

    def _bounds(self, first: int, end: int, counts: Counts) -> Counts:
        """Lower bounds by the regions' counts on the distances of the images from place ``first`` to ``end``."""
        bounds = np.zeros(end - first, np.int16)
        for of_bank, of_image in zip(self._sorted_counts[:, first:end], counts, strict=True):
            bounds += np.abs(of_bank - of_image)
        return bounds

    def _nearest(self, words: Words) -> tuple[int, int]:
        """Row and distance of the nearest image: pixels are compared only where the bound leaves a chance."""
        counts = _counts(words[None])[0]
        area = int(counts.sum(dtype=np.int64))
        middle = int(np.searchsorted(self._areas, area))
        first, end = max(0, middle - FIRST_LOOK // 2), min(len(self), middle + FIRST_LOOK // 2)
        bounds = self._bounds(first, end, counts)
        promising = first + np.argpartition(bounds, min(FIRST_CANDIDATES, len(bounds)) - 1)[:FIRST_CANDIDATES]
        best = int(self._distances(promising, words).min())
        first = int(np.searchsorted(self._areas, area - best, side="left"))
        end = int(np.searchsorted(self._areas, area + best, side="right"))
        candidates = first + np.flatnonzero(self._bounds(first, end, counts) <= best)
        distances = self._distances(candidates, words)
        best = int(distances.min())
        return int(self._order[candidates[distances == best]].min()), best

    def nearest(self, images: Array) -> NearestImages:
        """The nearest image of the bank to each of ``images`` [N, ...], whose pixels are 0 or 1.

        Raises:
            ValueError: other values, or another number of pixels than the bank's.
        """
        array = to_numpy(images)
        flat = array.reshape(len(array), -1) if array.ndim > 1 else array[None]
        if flat.shape[1] != self.words.shape[1] * 64:
            raise ValueError(f"images {array.shape} have {flat.shape[1]} pixels, the bank's {self.words.shape[1] * 64}")
        if not np.isin(flat, (0, 1)).all():
            raise ValueError(f"images {array.shape} hold values other than 0 and 1; round them first")
        words = np.packbits(flat.astype(np.uint8), axis=1).view(np.uint64)
        pairs = np.array([self._nearest(row) for row in words], dtype=np.int64).reshape(-1, 2)
        return NearestImages(pairs[:, 0], pairs[:, 1])


def nearest_scores(
    nearest: NearestImages,
    factors: Array,
    factor_sizes: Sequence[int] | Array,
    *,
    within: int = 20,
    distances: Sequence[int] = PIXELS,
) -> NearestScores:
    """Precision and coverage of samples from the nearest real image to each.

    Args:
        nearest: from :meth:`ImageBank.nearest`.
        factors: classes [N, K] of these nearest images.
        factor_sizes: values of each factor, [K].
        within: pixels that a sample may differ to count as a real image; for ``score`` and coverage.
        distances: pixels at which precision is stated as well.

    Raises:
        ValueError: rows or columns that do not fit, or a negative distance.
    """
    classes, sizes = as_factors(factors), as_sizes(factor_sizes)
    same_rows(classes.shape, nearest.distance.shape, "factors and distances")
    if classes.shape[1] != len(sizes) or bool((classes >= sizes).any()):
        raise ValueError(f"factors {classes.shape} do not fit factor_sizes {sizes.tolist()}; give classes below these")
    if min(within, *distances) < 0:
        raise ValueError(f"distances {tuple(distances)} and within={within} are pixels; give 0 or more")
    good = classes[nearest.distance <= within]
    shares = [np.bincount(good[:, k], minlength=size) / max(len(good), 1) for k, size in enumerate(sizes)]
    return NearestScores(
        score=_share(nearest.distance, within),
        within=within,
        distances=tuple(int(d) for d in distances),
        precision=tuple(_share(nearest.distance, d) for d in distances),
        median_distance=float(np.median(nearest.distance)),
        coverage=tuple(float((share > 0).mean()) for share in shares),
        value_shares=tuple(tuple(share.tolist()) for share in shares),
        num_samples=len(classes),
        notes=_notes(len(good), int(sizes.max())),
    )


def _share(distance: npt.NDArray[Any], within: int) -> float:
    return float((distance <= within).mean())


def _notes(num_good: int, largest: int) -> tuple[str, ...]:
    if num_good >= 10 * largest:
        return ()
    return (f"{num_good} samples count as real images: too few to expect all {largest} values of the largest factor",)
