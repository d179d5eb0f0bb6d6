"""The one place where inputs are checked: arrays or tensors in, NumPy out, a clear ValueError for what cannot be scored.

Codes are [N, D] floats, factors [N, K] whole numbers from 0. What a score can still be defined for becomes a note in
plain words; the rest is refused with the shapes named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Array: TypeAlias = npt.ArrayLike | torch.Tensor
"""What a user may give: anything NumPy reads, or a tensor on any device."""

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Float64: TypeAlias = npt.NDArray[np.float64]
Int64: TypeAlias = npt.NDArray[np.int64]

ACTIVE_VARIANCE = 1e-2
"""A latent whose means vary more than this (the prior's variance is 1) is active (Li et al. 2020 count so)."""


def to_numpy(values: Array) -> npt.NDArray[Any]:
    """Any array or tensor, on any device, as NumPy; half precisions become float32, because NumPy has no bfloat16."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        return np.asarray(values.numpy())
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
    """Factors [N, K] of whole numbers from 0, as int64. Raises ValueError with shape or first bad value otherwise."""
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


@dataclass(frozen=True, eq=False)
class Labelled:
    """Checked codes [N, D] and factors [N, K'] without the one-valued ones; ``kept`` are the columns that stayed."""

    codes: Floats
    factors: Int64
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def same_rows(first: npt.NDArray[Any], second: npt.NDArray[Any], names: str) -> None:
    """Raise ValueError naming both shapes where the numbers of rows differ."""
    if first.shape[0] != second.shape[0]:
        raise ValueError(f"{names} have shapes {first.shape} and {second.shape}; give the same number of rows in both")


def labelled(codes: Array, factors: Array, name: str = "") -> Labelled:
    """Check codes and factors together and drop factors with one value, with a note."""
    code_array, factor_array = as_codes(codes, f"{name}codes"), as_factors(factors, f"{name}factors")
    same_rows(code_array, factor_array, f"{name}codes and {name}factors")
    varying = factor_array.min(axis=0) != factor_array.max(axis=0)
    kept = tuple(int(k) for k in np.flatnonzero(varying))
    if not kept:
        raise ValueError(
            f"no factor of {factor_array.shape} takes two values; there is nothing that a code could encode"
        )
    dropped = [int(k) for k in np.flatnonzero(~varying)]
    notes = (f"factors {dropped} take one value only and were dropped",) if dropped else ()
    return Labelled(code_array, factor_array[:, varying] if dropped else factor_array, kept, notes)


def labelled_split(codes: Array, factors: Array, test_codes: Array, test_factors: Array) -> tuple[Labelled, Labelled]:
    """Train and test rows with the same latents and factors; factors with one value in train are dropped from both."""
    train = labelled(codes, factors)
    code_array, factor_array = as_codes(test_codes, "test_codes"), as_factors(test_factors, "test_factors")
    same_rows(code_array, factor_array, "test_codes and test_factors")
    num_factors = to_numpy(factors).shape[1]
    if code_array.shape[1] != train.codes.shape[1] or factor_array.shape[1] != num_factors:
        raise ValueError(
            f"test_codes {code_array.shape} and test_factors {factor_array.shape} do not match codes "
            f"{train.codes.shape} and factors {to_numpy(factors).shape}; give the same columns in both"
        )
    return train, Labelled(code_array, factor_array[:, list(train.kept)], train.kept, train.notes)


def few_points_note(num_points: int, bins: int) -> tuple[str, ...]:
    """A note where fewer points than bins make a histogram mean little."""
    if num_points >= bins:
        return ()
    return (f"{num_points} points are fewer than the {bins} bins: the information is biased upwards",)


def check_count(value: int, name: str, minimum: int = 1) -> int:
    """A whole number of at least ``minimum``, or ValueError."""
    if int(value) != value or value < minimum:
        raise ValueError(f"{name}={value} is not possible; give a whole number of at least {minimum}")
    return int(value)


def as_sizes(factor_sizes: Sequence[int] | Array) -> Int64:
    """Sizes [K] of the factors of a full grid, each at least 1 and one at least 2."""
    sizes = to_numpy(np.asarray(factor_sizes) if not isinstance(factor_sizes, torch.Tensor) else factor_sizes)
    valid = sizes.ndim == 1 and sizes.size > 0 and sizes.dtype.kind in "iu" and int(sizes.min()) >= 1
    if not valid or int(sizes.max()) < 2:
        raise ValueError(
            f"factor_sizes={sizes.tolist()} are not possible; give whole numbers from 1, one of them above 1"
        )
    return sizes.astype(np.int64)
