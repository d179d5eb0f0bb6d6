"""A subset of a split: the choice of rows, and a data set of those rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from datasets.arrays import Dataset, Indices, as_indices, item
from datasets.spec import DataError, ImageSpec
from datasets.views import Int64


def choose_rows(num_images: int, count: int | None = None, *, seed: int | None = None) -> Int64:
    """Choose `count` of a split's images, ascending and each at most once; all of them by default.

    It never takes just the first images: dSprites and folders are sorted, and their first images are alike.

    Args:
        num_images: images of the split.
        count: number to choose; None, or a number not below `num_images`, takes all.
        seed: None spreads the rows evenly over the split; a number draws them at random, without replacement. Scores
            use random rows, because evenly spaced ones can be in phase with a factor of a grid.

    Raises:
        DataError: a count below 1.
    """
    if count is None or count >= num_images:
        return np.arange(num_images, dtype=np.int64)
    if count < 1:
        raise DataError(f"the number of images is {count}; give 1 or more")
    if seed is None:
        return np.arange(count, dtype=np.int64) * num_images // count
    return np.sort(np.random.default_rng(seed).choice(num_images, count, replace=False)).astype(np.int64)


@dataclass(frozen=True)
class Subset:
    """A data set of some rows of another, in the order of `rows`.

    Random views stay those of the whole data set: image i of the subset is drawn as image `rows[i]` is.

    Raises:
        IndexError: a row outside the data set.
    """

    data: Dataset
    rows: Int64  # [N]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", as_indices(self.rows, len(self.data)))

    @property
    def name(self) -> str:
        """Name of the data in logs and reports."""
        return self.data.name

    @property
    def spec(self) -> ImageSpec:
        """Shape and bit depth of an image."""
        return self.data.spec

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the whole data set, and the chosen rows."""
        digest = hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest()
        return {**self.data.recipe, "count": len(self), "rows_sha256": digest}

    @property
    def note(self) -> str:
        """Note of the whole data set."""
        return self.data.note

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the K factors; empty without factors."""
        return self.data.factor_names

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        """Number of classes of each factor; 0 for a continuous one."""
        return self.data.factor_sizes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`: uint8 `[C, H, W]`."""
        return item(self, index)

    def images(self, indices: Indices, draw: int = 0) -> Tensor:
        """Return the `draw`-th view of these images: uint8 `[B, C, H, W]` in 0..2^num_bits - 1."""
        return self.data.images(self.rows[as_indices(indices, len(self))], draw)

    def factors(self, indices: Indices) -> Tensor:
        """Return the factors of these images `[B, K]`, as the whole data set does."""
        return self.data.factors(self.rows[as_indices(indices, len(self))])
