"""Assignment of images to ranks and steps, as index arithmetic without state."""

from __future__ import annotations

import numpy as np

from datasets.spec import DataError
from datasets.views import Int64, hash64

_STREAM_ORDER = 3


def _check_ranks(rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} and world_size {world_size}; give 0 <= rank < world_size")


class Batches:
    """Training batches as a function of the step alone: they resume anywhere, in the same order at any number of ranks.

    Every epoch is a permutation of all images by (seed, epoch): the stable argsort of our own 64-bit hash of
    (seed, epoch, index), so it depends on no library's generator. An epoch is cut into global batches of
    `batch_size`; images left over at its end are skipped (no short batches). A global batch is cut into `accumulation`
    parts, which are the images of one forward pass over all ranks, and rank r takes the r-th contiguous slice of each
    part: batch norm sees the same images together at any number of ranks. The step counter is the only state.

    Raises:
        ValueError: the batch is larger than the data, or does not divide evenly among the ranks and parts.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        accumulation: int = 1,
    ) -> None:
        _check_ranks(rank, world_size)
        if batch_size < 1:
            raise DataError(f"batch size is {batch_size}; give 1 or more")
        if batch_size > num_images:
            raise DataError(
                f"the global batch of {batch_size} images is larger than the split of {num_images}; "
                f"choose a batch size of {num_images} or less over all processes"
            )
        if batch_size % (world_size * accumulation):
            parts = f" in {accumulation} parts each" if accumulation > 1 else ""
            raise DataError(
                f"the global batch of {batch_size} images does not divide among {world_size} processes{parts}; "
                f"choose a multiple of {world_size * accumulation}"
            )
        self.num_images, self.batch_size, self.seed, self.accumulation = num_images, batch_size, seed, accumulation
        self.rank, self.world_size, self.shuffle = rank, world_size, shuffle
        self._cached: tuple[int, Int64] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of full global batches in an epoch."""
        return self.num_images // self.batch_size

    @property
    def local_batch_size(self) -> int:
        """Number of images of this rank in a step."""
        return self.batch_size // self.world_size

    def order(self, epoch: int) -> Int64:
        """Order of all images in an epoch: a permutation [num_images] of 0..num_images - 1."""
        cached = self._cached  # read once, because another thread may replace it
        if cached is not None and cached[0] == epoch:
            return cached[1]
        order = np.arange(self.num_images)
        if self.shuffle:
            order = np.argsort(hash64(self.seed, _STREAM_ORDER, epoch, order), kind="stable")
        self._cached = (epoch, order)
        return order

    def indices(self, step: int) -> tuple[int, Int64]:
        """Epoch, and this rank's image indices int64 [local_batch_size], of optimiser step `step` (from 0)."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        parts = self.order(epoch)[start : start + self.batch_size].reshape(self.accumulation, self.world_size, -1)
        return epoch, parts[:, self.rank].reshape(-1).copy()
