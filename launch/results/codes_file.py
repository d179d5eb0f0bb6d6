"""Codes that another framework left in an npz."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

import metrics
from launch.results.scores import Floats, Int64


def read_codes(path: Path) -> tuple[Floats, Int64 | None]:
    """Codes [N, D] and, where they are there, factors [N, K] of an npz; nothing is unpickled.

    Raises:
        ValueError: no such file, no npz, pickled content, or no key "codes"; shapes are checked by the scores.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(getattr(file, "files", ()))
            if "codes" not in names:
                raise ValueError(f"{path} has the keys {names}; save it with np.savez(path, codes=..., factors=...)")
            codes = metrics.arrays.as_codes(file["codes"])
            factors = metrics.arrays.as_factors(file["factors"]) if "factors" in names else None
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; save it with np.savez(path, codes=..., factors=...)") from None
    except (zipfile.BadZipFile, EOFError, OSError, TypeError) as error:
        raise ValueError(
            f"{path} is no readable npz ({str(error)[:80]}); save it with np.savez(path, codes=..., factors=...)"
        ) from error
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"{path} holds pickled objects, which are never loaded; save plain numeric arrays with np.savez"
        ) from error
    if factors is not None and len(factors) != len(codes):
        raise ValueError(
            f"codes {codes.shape} and factors {factors.shape} of {path} differ in their rows; save both alike"
        )
    return codes, factors


def grid_of(codes: Floats, factors: Int64 | None) -> tuple[Floats | None, tuple[int, ...]]:
    """Codes in the order of the grid, where the rows are every combination of the factors once."""
    if factors is None:
        return None, ()
    sizes = tuple(int(n) for n in factors.max(axis=0) + 1)
    if math.prod(sizes) != len(factors):
        return None, ()
    index = np.ravel_multi_index(tuple(factors.T), sizes)
    if len(np.unique(index)) < len(index):
        return None, ()
    ordered = np.empty_like(codes)
    ordered[index] = codes
    return ordered, sizes
