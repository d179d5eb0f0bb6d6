"""MNIST and CIFAR-10 through torchvision's own classes, which also download and check them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datasets.arrays import ArrayDataset, check_split
from datasets.cache import sha256
from datasets.spec import DataError, check_bits
from datasets.views import Int64, UInt8, Views


def _read(kind: str, root: Path, train: bool, download: bool) -> UInt8:
    """Official training or test images, uint8 [N, C, H, W]; DataError where they are not there."""
    from torchvision import datasets as sets  # a second, and used nowhere else

    try:
        pixels = np.asarray(
            (sets.MNIST if kind == "mnist" else sets.CIFAR10)(root, train=train, download=download).data
        )
    except (RuntimeError, OSError) as error:
        where = "MNIST/raw/" if kind == "mnist" else "cifar-10-batches-py/"
        how = "check the connection" if download else "ask for it with download"
        raise DataError(
            f"no {kind} in {root} ({error}); {how}, or put {where} there as torchvision keeps it"
        ) from error
    return pixels[:, None] if kind == "mnist" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _rows(kind: str, split: str, num_train: int, num_valid: int) -> Int64:
    """Split the official training images: the last `num_valid` are valid; the official test images are test."""
    check_split(kind, split, ("train", "valid", "test"))
    if not 0 <= num_valid < num_train:
        raise DataError(f"num_valid {num_valid} makes no sense for {num_train} training images of {kind}; give less")
    if split == "valid" and num_valid == 0:
        raise DataError(f"{kind}: num_valid 0 leaves no images for split valid; use split test, or give num_valid")
    cut = num_train - num_valid
    return np.arange(cut, num_train) if split == "valid" else np.arange(cut if split == "train" else num_train)


def _open(
    kind: str, root: Path, split: str, num_valid: int, download: bool, num_bits: int, views: Views, more: dict[str, Any]
) -> ArrayDataset:
    check_split(kind, split, ("train", "valid", "test"))
    check_bits(num_bits)
    pixels = _read(kind, root, split != "test", download)
    rows = np.arange(len(pixels)) if split == "test" else _rows(kind, split, len(pixels), num_valid)
    recipe: dict[str, Any] = {
        "name": kind,
        "split": split,
        "split_rule": f"official; last {num_valid} of train are valid",
    }
    recipe |= {"size": list(pixels.shape[2:]), "num_bits": num_bits, "count": len(rows)} | more
    recipe |= {"sha256": sha256(pixels)}
    return ArrayDataset(name=kind, array=pixels, rows=rows, num_bits=num_bits, views=views, recipe=recipe)


def open_mnist(
    root: Path,
    split: str = "train",
    *,
    binarise: bool = True,
    num_bits: int = 8,
    num_valid: int = 5_000,
    seed: int = 0,
    download: bool = False,
) -> ArrayDataset:
    """Open MNIST, grey 28x28: 55,000 / 5,000 / 10,000 images for train / valid / test.

    The last `num_valid` training images are valid; with 0, train has all 60,000.

    `binarise`: dynamic binarisation, each pixel drawn anew as Bernoulli(value / 255) for each `draw`, by (seed, draw,
    index), on every split as NVAE does; a fixed `draw` is a fixed evaluation set. Without it `num_bits` bits.
    """
    views = Views(seed=seed, binarise=binarise)
    more = {"binarise": "dynamic", "seed": seed} if binarise else {"binarise": "none"}
    return _open("mnist", root, split, num_valid, download, 1 if binarise else num_bits, views, more)


def open_cifar10(
    root: Path,
    split: str = "train",
    *,
    num_bits: int = 8,
    hflip: bool = False,
    num_valid: int = 5_000,
    seed: int = 0,
    download: bool = False,
) -> ArrayDataset:
    """Open CIFAR-10, RGB 32x32: 45,000 / 5,000 / 10,000 images for train / valid / test.

    The last `num_valid` training images are valid; with 0, train has all 50,000.
    `hflip` mirrors at random in split train only. torchvision unpickles the official files, after checking their MD5.
    """
    flips = hflip and split == "train"
    more = {"hflip": flips} | ({"seed": seed} if flips else {})
    return _open("cifar10", root, split, num_valid, download, num_bits, Views(seed=seed, hflip=flips), more)
