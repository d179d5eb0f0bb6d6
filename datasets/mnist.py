"""MNIST (LeCun et al. 1998) through torchvision's own class, which also downloads and checks it; nothing is pickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.arrays import ArrayDataset
from datasets.holdout import check_options, official_split
from datasets.spec import DataError
from datasets.views import UInt8, Views


def _read(root: Path, train: bool, download: bool) -> UInt8:
    """Official training or test images, uint8 [N, 1, 28, 28]; DataError where they are not there or damaged."""
    from torchvision.datasets import MNIST  # a second, and used nowhere else

    try:
        pixels = np.asarray(MNIST(root, train=train, download=download).data)
    except (RuntimeError, OSError) as error:
        how = "check the connection" if download else "ask for it with download"
        raise DataError(
            f"no mnist in {root} ({error}); {how}, or put MNIST/raw/ there as torchvision keeps it"
        ) from error
    except (ValueError, TypeError, LookupError, AssertionError) as error:  # torchvision checks little
        raise DataError(
            f"the files in {root}/MNIST/raw are damaged ({error!r}); remove them and download them again"
        ) from error
    if pixels.shape[1:] != (28, 28) or not len(pixels):
        raise DataError(f"the images in {root}/MNIST/raw are {pixels.shape}, not (N, 28, 28); download them again")
    return pixels[:, None]


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
    num_bits = 1 if binarise else num_bits
    check_options("mnist", split, num_bits)
    more = {"binarise": "dynamic", "seed": seed} if binarise else {"binarise": "none"}
    pixels = _read(root, split != "test", download)
    views = Views(seed=seed, binarise=binarise)
    return official_split("mnist", pixels, split, num_valid=num_valid, num_bits=num_bits, views=views, more=more)
