"""Shape and bit depth of images: all that a model knows about its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_LARGEST_SPEC = 65_536
_LARGEST_SIDE = 8192  # pixels: an image of this size takes 200 MB


class DataError(ValueError):
    """The user's data or options are invalid; the message is one line for the user."""


class NoSuchSplit(DataError):
    """The requested split has no image; `splits` names those that have some."""

    def __init__(self, message: str, splits: tuple[str, ...]) -> None:
        super().__init__(message)
        self.splits = splits


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Shape and bit depth of the images `[B, channels, height, width]` of a data set, values 0..2^num_bits - 1."""

    channels: int
    """Colour channels: 1 (grey) or 3 (RGB) in our data sets; models take any."""
    height: int
    """Rows in pixels."""
    width: int
    """Columns in pixels."""
    num_bits: int = 8
    """Bits of one value, 1 (binary) to 8."""

    def __post_init__(self) -> None:
        """Refuse values that are not whole numbers, sizes outside 1 to 65,536 and bit depths outside 1 to 8."""
        for field in ("channels", "height", "width", "num_bits"):
            value, most = getattr(self, field), 8 if field == "num_bits" else _LARGEST_SPEC
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"ImageSpec: {field} is {value!r}; give a whole number, 1 to {most:,}")
            if not 1 <= value <= most:
                raise ValueError(f"ImageSpec: {field} is {value}; give 1 to {most:,}")

    @property
    def num_dims(self) -> int:
        """Number of values of an image: the divisor in bits per dimension."""
        return self.channels * self.height * self.width

    @property
    def max_value(self) -> int:
        """The largest value of a pixel, 2^num_bits - 1."""
        return (1 << self.num_bits) - 1


class Levels(Protocol):
    """Part of an image spec that the conversion of levels needs."""

    @property
    def num_bits(self) -> int:
        """Bits of one value."""


def to_float(images: Tensor, spec: Levels, device: torch.device | str | None = None) -> Tensor:
    """Convert stored levels to the values that a model sees, x / (2^num_bits - 1).

    Args:
        images: uint8 `[B, C, H, W]` in 0..2^num_bits - 1.
        spec: image spec with `num_bits`.
        device: device of the result; default that of `images`.

    Returns:
        float32 `[B, C, H, W]` in [0, 1].
    """
    moved = images if device is None else images.to(device, non_blocking=True)
    return moved.float().div_(2**spec.num_bits - 1)


def check_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Turn an image size, an int (square) or (height, width), into (height, width); DataError for anything else."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and 1 <= n <= _LARGEST_SIDE for n in pair):
        raise DataError(
            f"size is {size!r}; give 1 to {_LARGEST_SIDE:,} pixels, such as 64, or height and width, such as (48, 64)"
        )
    return pair[0], pair[1]


def check_bits(num_bits: int) -> None:
    """Refuse bit depths outside 1..8."""
    if not 1 <= num_bits <= 8:
        raise DataError(f"num_bits is {num_bits}; choose 1 to 8")
