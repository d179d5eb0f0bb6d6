"""MNIST (LeCun et al. 1998): 70,000 grey 28x28 digits, from the official files, packed or not."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from datasets.arrays import ArrayDataset
from datasets.files import read_bytes
from datasets.holdout import check_options, official_split
from datasets.spec import DataError
from datasets.views import UInt8, Views

_FOLDERS = ("MNIST/raw", "raw", "")  # torchvision's layout; its folders one level up; the files themselves
_PREFIX = {True: "train", False: "t10k"}
_IMAGES_MAGIC, _HEADER_BYTES, _MOST_BYTES = 2051, 16, 2**26  # 60,000 images take 47 MB


def _find(root: Path, train: bool) -> Path | None:
    """Find the file of the training or test images, packed by gzip or not."""
    stem = f"{_PREFIX[train]}-images"
    names = [f"{stem}{dot}idx3-ubyte{packed}" for dot in "-." for packed in ("", ".gz")]
    return next((root / f / n for f in _FOLDERS for n in names if (root / f / n).exists()), None)


def _unpack(content: bytes) -> bytes:
    """Unpack gzip, at most `_MOST_BYTES`."""
    return zlib.decompressobj(wbits=31).decompress(content, _MOST_BYTES)


def decode(content: bytes, where: str) -> UInt8:
    """Decode an IDX file of images: uint8 [N, 1, 28, 28].

    Raises:
        DataError: the content is anything else.
    """
    try:
        content = _unpack(content) if content[:2] == b"\x1f\x8b" else content
        magic, count, height, width = struct.unpack_from(">4I", content)
    except (struct.error, zlib.error) as error:
        raise DataError(f"{where} is damaged ({error}); remove it and download it again") from error
    if magic != _IMAGES_MAGIC or len(content) != _HEADER_BYTES + count * height * width:
        raise DataError(f"{where} is damaged or not a file of images; remove it and download it again")
    if (height, width) != (28, 28) or not count:
        raise DataError(f"the images in {where} are {(count, height, width)}, not (N, 28, 28); download them again")
    return np.frombuffer(content, np.uint8, offset=_HEADER_BYTES).reshape(count, 1, 28, 28)


def _download(root: Path, train: bool) -> None:
    from torchvision.datasets import MNIST  # takes a second and is used only here; it knows mirrors and checksums

    try:
        MNIST(root, train=train, download=True)
    except Exception as error:  # the files there may be damaged
        raise DataError(f"no mnist in {root} ({error}); check the connection, or get the files by hand") from error


def _read(root: Path, train: bool, download: bool) -> UInt8:
    """Official training or test images, uint8 [N, 1, 28, 28]; DataError if they are missing or damaged."""
    if download and _find(root, train) is None:
        _download(root, train)
    path = _find(root, train)
    if path is None:
        raise DataError(
            f"no mnist in {root}; download it (--download), or put {_PREFIX[train]}-images-idx3-ubyte (or .gz) there, "
            "or into MNIST/raw/ as torchvision keeps it"
        )
    return decode(read_bytes(path, _MOST_BYTES), str(path))


def open_mnist(
    root: Path,
    split: str = "train",
    *,
    binarise: bool = True,
    num_bits: int | None = None,
    num_valid: int = 0,
    seed: int = 0,
    download: bool = False,
) -> ArrayDataset:
    """Open MNIST, grey 28x28: 60,000 / 10,000 images for train / test, as published models are trained and tested.

    `num_valid` moves the last training images to split valid: 5,000 leaves 55,000.

    `binarise` samples each pixel from Bernoulli(value / 255) by (seed, draw, index), on every split, as NVAE does: each
    `draw` gives other pixels, and a fixed `draw` is a fixed evaluation set. Without it, pixels have `num_bits` bits, by
    default 8.

    Raises:
        DataError: binarised pixels of more than one bit, besides what every data set raises.
    """
    if binarise and num_bits not in (None, 1):
        raise DataError(
            f"num_bits is {num_bits}, but binarised pixels have one bit; leave it out, or set binarise to False"
        )
    if num_bits is None:
        num_bits = 1 if binarise else 8
    check_options("mnist", split, num_bits)
    more = {"binarise": "dynamic", "seed": seed} if binarise else {"binarise": "none"}
    pixels = _read(root, split != "test", download)
    views = Views(seed=seed, binarise=binarise)
    return official_split("mnist", pixels, split, num_valid=num_valid, num_bits=num_bits, views=views, more=more)
