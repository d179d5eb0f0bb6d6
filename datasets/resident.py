"""Images of a split kept on a device, where batches are gathered and unpacked without reading files in a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from datasets.arrays import Dataset, Storage
from datasets.spec import ImageSpec

_BLOCK = 2**26  # bytes per transfer


@runtime_checkable
class Storing(Protocol):
    """A data set whose images are stored pixels, at most mirrored or reduced to fewer bits."""

    @property
    def storage(self) -> Storage | None:
        """Array of the images; None if the pixels of an image differ each time it is read."""


@dataclass(frozen=True)
class Resident:
    """Images of a split on a device."""

    stored: Tensor  # uint8 [N, ...] as in Storage
    spec: ImageSpec
    is_packed: bool

    def images(self, indices: Tensor) -> Tensor:
        """These images, int64 [B] -> uint8 [B, C, H, W] in 0..2^num_bits - 1, not mirrored, on the same device."""
        rows = self.stored[indices.to(self.stored.device, non_blocking=True)]
        if not self.is_packed:
            return rows >> (8 - self.spec.num_bits) if self.spec.num_bits < 8 else rows
        places = torch.arange(7, -1, -1, dtype=torch.uint8, device=rows.device)
        pixels = (rows.unsqueeze(-1) >> places) & 1
        return pixels.view(-1, self.spec.channels, self.spec.height, self.spec.width)


def _storage(dataset: Dataset) -> Storage | None:
    return dataset.storage if isinstance(dataset, Storing) else None


def nbytes(dataset: Dataset) -> int | None:
    """Bytes that the split takes on a device; None if it cannot be kept there."""
    storage = _storage(dataset)
    return None if storage is None else storage.nbytes


def to_device(dataset: Dataset, device: torch.device) -> Resident:
    """Copy the images of ``dataset`` to ``device``.

    Raises:
        ValueError: the pixels are drawn anew in each epoch.
    """
    storage = _storage(dataset)
    if storage is None:
        raise ValueError(f"{dataset.name} draws its pixels anew in each epoch, so no device can keep them")
    array, rows = storage.array, storage.rows
    stored = torch.empty((len(rows), *array.shape[1:]), dtype=torch.uint8, device=device)
    step = max(1, _BLOCK // max(1, array[:1].nbytes))
    for start in range(0, len(rows), step):
        block = np.ascontiguousarray(array[rows[start : start + step]])
        stored[start : start + len(block)] = torch.from_numpy(block)
    return Resident(stored, dataset.spec, storage.is_packed)
