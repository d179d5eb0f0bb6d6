"""Data sets with official training and test images, of which the last training images are held out."""

from __future__ import annotations

from typing import Any

import numpy as np

from datasets.arrays import SPLITS, ArrayDataset, check_split
from datasets.cache import sha256
from datasets.spec import DataError, NoSuchSplit, check_bits
from datasets.views import Int64, UInt8, Views


def check_options(name: str, split: str, num_bits: int) -> None:
    """Refuse an unknown split or bit depth, before anything is read."""
    check_split(name, split, SPLITS)
    check_bits(num_bits)


def official_split(
    name: str, pixels: UInt8, split: str, *, num_valid: int, num_bits: int, views: Views, more: dict[str, Any]
) -> ArrayDataset:
    """A split of the official images: the last `num_valid` training images are valid, the official test images test.

    `pixels` [M, C, H, W] are the official test images if `split` is test, else all training images; `more` is added to
    the recipe.
    """
    rows = np.arange(len(pixels)) if split == "test" else _rows(name, split, len(pixels), num_valid)
    recipe: dict[str, Any] = {
        "name": name,
        "split": split,
        "split_rule": f"official; last {num_valid} of train are valid",
    }
    recipe |= {"size": list(pixels.shape[2:]), "num_bits": num_bits, "count": len(rows)} | more
    recipe |= {"sha256": sha256(pixels)}
    return ArrayDataset(name=name, array=pixels, rows=rows, num_bits=num_bits, views=views, recipe=recipe)


def _rows(name: str, split: str, num_train: int, num_valid: int) -> Int64:
    if not 0 <= num_valid < num_train:
        raise DataError(
            f"num_valid is {num_valid}, but {name} has {num_train} training images; give 0 to {num_train - 1}"
        )
    if split == "valid" and num_valid == 0:
        raise NoSuchSplit(
            f"{name}: num_valid 0 leaves no images for split valid; use split test, or hold some out (--num-valid 5000)",
            ("train", "test"),
        )
    cut = num_train - num_valid
    return np.arange(cut, num_train) if split == "valid" else np.arange(cut)
