"""Random views of images as pure functions of (seed, draw, index): the same at any number of ranks, after any resume.

A hash of counters replaces a generator's state: splitmix64's finaliser, so no version of NumPy can change it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]

_STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: splitmix64's increment
_MASK = 2**64 - 1
_STREAM_FLIP, _STREAM_PIXELS = 1, 2


def _mix(x: UInt64) -> UInt64:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): a bijection of 64-bit words that scatters every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash64(*keys: int | npt.NDArray[np.integer[Any]]) -> UInt64:
    """Hash integer keys, broadcast against each other, to uniform 64-bit words; the order of the keys matters."""
    state = np.zeros(1, np.uint64)
    for key in keys:
        word = (
            np.atleast_1d(key).astype(np.uint64) if isinstance(key, np.ndarray) else np.full(1, key & _MASK, np.uint64)
        )
        state = _mix((state + np.uint64(_STEP)) ^ _mix(word + np.uint64(_STEP)))
    return state


def hash_split(words: UInt64) -> npt.NDArray[np.uint8]:
    """Split by hash: 0 (train, 90 %), 1 (valid, 5 %), 2 (test, 5 %) for each 64-bit word."""
    twentieth = words // np.uint64(2**64 // 20 + 1)  # 0..19
    return np.where(twentieth < 18, 0, np.where(twentieth < 19, 1, 2)).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Views:
    """Random views of a data set's images. The k-th draw of image i is fixed by (seed, k, i)."""

    seed: int = 0
    """Seed of every random view."""
    hflip: bool = False
    """Mirror each image left-right with probability one half."""
    binarise: bool = False
    """Dynamic binarisation: each pixel becomes 1 with probability value / 255."""

    @property
    def is_random(self) -> bool:
        """True if draws differ."""
        return self.hflip or self.binarise

    def mirrored(self, indices: Int64, draw: int) -> npt.NDArray[np.bool_] | None:
        """Mask of the images with these indices [B] that the `draw`-th view mirrors, [B]; None if none ever is."""
        if not self.hflip:
            return None
        return (hash64(self.seed, _STREAM_FLIP, draw, indices) >> np.uint64(63)).astype(bool)

    def apply(self, images: UInt8, indices: Int64, draw: int, *, mirror: bool = True) -> UInt8:
        """Return the `draw`-th view of images [B, C, H, W], uint8, that have these indices [B]; may write in place.

        `mirror` False leaves the mirroring to the caller.
        """
        mirrored = self.mirrored(indices, draw) if mirror else None
        if mirrored is not None:
            images[mirrored] = images[mirrored, ..., ::-1]
        if self.binarise:
            pixels = np.arange(math.prod(images.shape[1:])).reshape(images.shape[1:])
            words = hash64(self.seed, _STREAM_PIXELS, draw, indices.reshape(-1, 1, 1, 1), pixels)
            # u < value / 255 in integers: exact, so 0 never and 255 always gives 1.
            uniform = words >> np.uint64(32)
            images = (uniform * np.uint64(255) < images.astype(np.uint64) << np.uint64(32)).view(np.uint8)
        return images
