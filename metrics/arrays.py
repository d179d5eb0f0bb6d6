"""Input checks for codes: arrays or tensors in, NumPy out, a clear ValueError for input that cannot be scored.

Codes are [N, D] floats. :mod:`metrics.factors` reads the factors beside them. PyTorch is not imported: tensors are
recognised by their ``detach`` method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array: TypeAlias = Union[npt.ArrayLike, "torch.Tensor"]
"""Accepted input: anything NumPy reads, or a tensor on any device."""

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Float64: TypeAlias = npt.NDArray[np.float64]
Int64: TypeAlias = npt.NDArray[np.int64]

ACTIVE_VARIANCE = 1e-2
"""A latent whose means vary more than this (the prior's variance is 1) is active (Li et al. 2020 count so)."""

EXTREME_EXPONENT = 100
"""Codes whose largest magnitude lies outside 2^-100 to 2^100 (about 1e-30 to 1e30) overflow or vanish when squared."""


ROWS_LOOKED_AT = 64


def to_numpy(values: Array) -> npt.NDArray[Any]:
    """Any array or tensor as NumPy; half precisions become float32, because NumPy has no bfloat16.

    Raises:
        ValueError: entries of a masked array are masked.
    """
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        return np.asarray(
            (tensor.float() if tensor.dtype.itemsize == 2 and tensor.is_floating_point() else tensor).numpy()
        )
    if isinstance(values, np.ma.MaskedArray) and np.any(values.mask):
        raise ValueError(f"{np.count_nonzero(values.mask)} entries are masked; leave out the rows that hold them")
    return np.asarray(values)


def as_floats(values: Array, name: str) -> Floats:
    """Finite numbers of any shape as float32 (kept) or float64 (everything else wider than half precision)."""
    array = to_numpy(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} have dtype {array.dtype}; give real numbers (float32 or float64)")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(f"{name} {array.shape} hold {bad} values that are NaN or infinite; score finite codes only")
    return array


def as_codes(codes: Array, name: str = "codes") -> Floats:
    """Codes [N, D], N and D at least 1, finite, float32 or float64. Raises ValueError with the shape otherwise."""
    array = to_numpy(codes)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} have shape {array.shape}; give [N, D] with at least one point and one latent")
    return as_floats(array, name)


def as_factors(factors: Array, name: str = "factors") -> Int64:
    """Class indices [N, K] as they are, int64 from 0; :func:`metrics.factors.as_classes` also relabels others.

    Raises:
        ValueError: a wrong shape, or a value that is not a whole number from 0.
    """
    array = to_numpy(factors)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} have shape {array.shape}; give [N, K] with at least one point and one factor")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} have dtype {array.dtype}; give class indices 0, 1, 2, ... as integers")
    whole = array.astype(np.int64) if np.isfinite(array).all() else None
    if whole is None or not np.array_equal(whole, array):
        raise ValueError(
            f"{name} {array.shape} hold values that are not whole numbers; give class indices 0, 1, 2, ..."
        )
    if int(whole.min()) < 0:
        raise ValueError(f"{name} {array.shape} hold the negative value {int(whole.min())}; give class indices from 0")
    return whole


def extreme_exponents(codes: Floats) -> Int64:
    """Power of two just above the largest magnitude of each latent [D] of extreme scale; 0 for all others."""
    limit, some = 2.0**EXTREME_EXPONENT, codes[:ROWS_LOOKED_AT]
    if max(float(codes.max()), -float(codes.min())) < limit and (np.abs(some).max(axis=0) > 1.0 / limit).all():
        return np.zeros(codes.shape[1], dtype=np.int64)  # nearly always: passes over columns cost more
    largest = np.maximum(codes.max(axis=0), -codes.min(axis=0))
    exponents = np.asarray(np.frexp(largest)[1], dtype=np.int64)  # 0 for a latent of zeros
    return np.where(np.abs(exponents) > EXTREME_EXPONENT, exponents, 0)


def tamed(codes: Floats) -> tuple[Floats, Int64]:
    """Codes [N, D] with columns of extreme scale divided by a power of two, and these powers' exponents [D].

    The division is exact, so a score that does not depend on the scale of a latent does not change by a digit.
    """
    exponents = extreme_exponents(codes)
    return (np.ldexp(codes, -exponents) if exponents.any() else codes), exponents


def usual_scale(codes: Floats, name: str = "codes") -> Floats:
    """The codes, for scores that depend on their scale.

    Raises:
        ValueError: a latent's largest magnitude lies outside 1e-30 to 1e30.
    """
    extreme = np.flatnonzero(extreme_exponents(codes))
    if extreme.size:
        size = float(np.abs(codes[:, extreme[0]]).max())
        raise ValueError(
            f"{name} reach {size:.0e} at most in column {extreme[0]}, where squares overflow or vanish, and this score "
            "depends on scale; divide each latent by its standard deviation"
        )
    return codes


def same_rows(first: tuple[int, ...], second: tuple[int, ...], names: str) -> None:
    """Raise ValueError with both shapes if the numbers of rows differ."""
    if first[0] != second[0]:
        raise ValueError(f"{names} have shapes {first} and {second}; give the same number of rows in both")


def check_count(value: int, name: str, minimum: int = 1) -> int:
    """A whole number of at least ``minimum``, or ValueError."""
    if int(value) != value or value < minimum:
        raise ValueError(f"{name}={value} is not possible; give a whole number of at least {minimum}")
    return int(value)


def check_counts(minimum: int = 1, **counts: int) -> None:
    """:func:`check_count` of several, each given by its name."""
    for name, value in counts.items():
        check_count(value, name, minimum)


def as_sizes(factor_sizes: Sequence[int] | Array) -> Int64:
    """Sizes [K] of the factors of a full grid, each at least 1 and one at least 2."""
    sizes = to_numpy(factor_sizes)
    valid = sizes.ndim == 1 and sizes.size > 0 and sizes.dtype.kind in "iu" and int(sizes.min()) >= 1
    if not valid or int(sizes.max()) < 2:
        raise ValueError(
            f"factor_sizes={sizes.tolist()} are not possible; give whole numbers from 1, one of them above 1"
        )
    return sizes.astype(np.int64)
