"""A data set of a few hundred binary images with four factors, and one small run of each family on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import registry
from datasets.arrays import ArrayDataset, Factors
from tests.launch import running

SIZES = (2, 3, 6, 6)
NAMES = ("shape", "scale", "posX", "posY")
TOTAL = 2 * 3 * 6 * 6


def factors_of(index: Any) -> np.ndarray[Any, Any]:
    return np.stack(np.unravel_index(np.asarray(index), SIZES), axis=1)


def draw() -> np.ndarray[Any, Any]:
    """Squares and horizontal bars on 16 x 16 pixels, [N, 1, 16, 16]."""
    images = np.zeros((TOTAL, 1, 16, 16), dtype=np.uint8)
    for i, (shape, scale, x, y) in enumerate(factors_of(range(TOTAL))):
        width, height = 2 + scale + 2 * shape, 2 + scale * (1 - shape)
        images[i, 0, 2 * y : 2 * y + height, 2 * x : 2 * x + width] = 255
    return images


def open_toy(root: Path, split: str = "train", *, source: str = "drawn") -> ArrayDataset:
    """Splits by remainder; ``source`` stands for another recipe."""
    index = np.arange(TOTAL)
    rows = {"train": index % 4 > 1, "valid": index % 4 == 1, "test": index % 4 == 0, "all": index >= 0}[split]
    rows = index[rows]
    factors = factors_of(rows)
    return ArrayDataset(
        name=f"toy ({source})",
        array=draw(),
        rows=rows,
        num_bits=1,
        recipe={"name": "toy", "source": source, "split": split, "count": len(rows), "num_bits": 1},
        factor_source=Factors(names=NAMES, sizes=SIZES, load=lambda: factors),
    )


def register(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(registry._OPENERS, "toy", open_toy)


def train(family: str, run: Path, *more: str) -> Path:
    """A run of 16 steps: NVAE of two groups, or a flat VAE of ten latents."""
    where = ["--dataset", "toy", "--run-dir", str(run), "--batch-size", "8", *running.LENGTH]
    preset = running.MODEL if family == "nvae" else ["--preset", "tiny"]
    result = running.call(f"train_{family}", *where, *preset, *more)
    assert result.code == 0, result.err
    return run
