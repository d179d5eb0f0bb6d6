"""The interface of every data set, and the data set that holds decoded images in an array."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.spec import DataError, ImageSpec
from datasets.views import Int64, UInt8, Views

SPLITS = ("train", "valid", "test")
Indices = Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor


class Dataset(Protocol):
    """Images by index, with their factors if the data have any; the result of `open_dataset`."""

    @property
    def name(self) -> str:
        """Name of the data in logs and reports."""

    @property
    def spec(self) -> ImageSpec:
        """Shape and bit depth of an image."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Plain data with everything that determines the pixels; runs with equal recipes are comparable."""

    @property
    def note(self) -> str:
        """One line for the user about the data, such as the rule of the split and the images left out; may be empty."""

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the K factors; empty if the data have none."""

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        """Number of classes of each of the K factors; 0 for a continuous one."""

    def __len__(self) -> int:
        """Count the images of this split."""

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`, uint8 `[C, H, W]`, as a `torch.utils.data.DataLoader` asks for it."""

    def images(self, indices: Indices, draw: int = 0) -> Tensor:
        """Return uint8 `[B, C, H, W]` in 0..2^num_bits - 1; `draw` (the epoch) picks the random view, if any."""

    def factors(self, indices: Indices) -> Tensor:
        """Return the factors `[B, K]`: classes as int64, or float64 if one of them is continuous.

        Raises:
            ValueError: the data have no factors.
        """


class Storage(NamedTuple):
    """Images as rows of an array."""

    array: UInt8  # [M, C, H, W], or [M, C * H * W / 8] bit-packed, most significant bit first
    rows: Int64  # [N] that are the split's images

    @property
    def is_packed(self) -> bool:
        """True if a byte holds eight pixels."""
        return self.array.ndim == 2

    @property
    def nbytes(self) -> int:
        """Bytes that the split takes."""
        return len(self.rows) * self.array[:1].nbytes


def as_indices(indices: Indices, length: int) -> Int64:
    """Check indices of any integer sequence against 0..length - 1; int64 [B]. IndexError names the first bad one."""
    if isinstance(indices, Tensor):
        indices = indices.numpy(force=True)
    array = np.asarray(indices)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise IndexError(f"indices must be one-dimensional integers; got {array.dtype} of shape {array.shape}")
    if array.min() < 0 or array.max() >= length:
        bad = array[(array < 0) | (array >= length)][0]
        raise IndexError(f"index {bad} is outside this split of {length} images")
    return array.astype(np.int64, copy=False)


class _HasImages(Protocol):
    def __len__(self) -> int: ...

    def images(self, indices: Indices, draw: int = 0) -> Tensor: ...


def item(dataset: _HasImages, index: int) -> Tensor:
    """Return one image of a data set, uint8 `[C, H, W]`; negative indices count from the end.

    Raises:
        IndexError: outside the split, which also ends a `for` loop over the data set.
    """
    place, length = operator.index(index), len(dataset)
    if not -length <= place < length:
        raise IndexError(f"index {place} is outside this split of {length} images")
    return dataset.images([place % length])[0]


def check_split(name: str, split: str, choices: Sequence[str] = (*SPLITS, "all")) -> None:
    """Refuse an unknown split."""
    if split not in choices:
        raise DataError(f"{name} has no split {split!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Ground-truth factors of the images of a split; the table is read on first use."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]  # 0 for a continuous factor
    load: Callable[[], npt.NDArray[Any]]  # [N, K]

    @cached_property
    def table(self) -> npt.NDArray[Any]:
        """Factors [N, K]: int64 classes, or float64 if one of them is continuous."""
        values = self.load()
        return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


@lru_cache(maxsize=32)  # one for each replica that trains at once
def _mirrored(views: Views, draw: int, num_images: int) -> npt.NDArray[np.bool_] | None:
    """Mask of the images that a view mirrors, [N]; hashing all of them costs no more than a few batches."""
    return views.mirrored(np.arange(num_images), draw)


@dataclass(frozen=True, kw_only=True)
class ArrayDataset:
    """Images in one uint8 array [M, C, H, W] at 8 bits (a memory map or in RAM); a split is a choice of rows."""

    name: str
    array: UInt8  # [M, C, H, W]
    rows: Int64  # [N], rows of the array
    num_bits: int = 8
    views: Views = field(default_factory=Views)
    recipe: dict[str, Any]
    factor_source: Factors | None = None
    no_factors: str = "has no ground-truth factors"
    note: str = ""

    @cached_property
    def spec(self) -> ImageSpec:
        """Shape and bit depth of an image."""
        channels, height, width = self.array.shape[1:]
        num_bits = 1 if self.views.binarise else self.num_bits
        return ImageSpec(channels=channels, height=height, width=width, num_bits=num_bits)

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the K factors; empty without factors."""
        return self.factor_source.names if self.factor_source else ()

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        """Number of classes of each factor; 0 for a continuous one."""
        return self.factor_source.sizes if self.factor_source else ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`: uint8 `[C, H, W]`."""
        return item(self, index)

    @property
    def storage(self) -> Storage | None:
        """The images at 8 bits, before they are mirrored; None if pixels are drawn at random."""
        return None if self.views.binarise else Storage(self.array, self.rows)

    def mirrored(self, indices: Indices, draw: int = 0) -> Tensor | None:
        """Mask of the images that the `draw`-th view mirrors, bool `[B]`; None if the data set never mirrors.

        Also None if pixels are drawn at random, because mirroring then comes first and cannot be left to the device.
        """
        flags = None if self.views.binarise else _mirrored(self.views, draw, len(self))
        return None if flags is None else torch.from_numpy(flags[as_indices(indices, len(self))])

    def images(self, indices: Indices, draw: int = 0, *, mirror: bool = True) -> Tensor:
        """Return the `draw`-th view of these images: uint8 `[B, C, H, W]` in 0..2^num_bits - 1.

        `mirror` False leaves the mirroring to the caller, because a GPU does it faster.
        """
        chosen = as_indices(indices, len(self))
        images: UInt8 = self.views.apply(self.array[self.rows[chosen]], chosen, draw, mirror=mirror)
        if not self.views.binarise and self.num_bits < 8:
            np.right_shift(images, 8 - self.num_bits, out=images)  # floor(x / 2^(8 - num_bits))
        return torch.from_numpy(images)

    def factors(self, indices: Indices) -> Tensor:
        """Return the factors of these images `[B, K]`: int64 classes, or float64 if one of them is continuous."""
        if self.factor_source is None:
            raise DataError(
                f"{self.name} {self.no_factors}; choose a data set with factors, such as dsprites or celeba"
            )
        return torch.from_numpy(self.factor_source.table[as_indices(indices, len(self))])


def with_seed(data: Dataset, seed: int) -> Dataset:
    """The same images with random views of another seed; `data` itself if its views are not random."""
    if not (isinstance(data, ArrayDataset) and data.views.is_random):
        return data
    return replace(data, views=replace(data.views, seed=seed), recipe={**data.recipe, "seed": seed})
