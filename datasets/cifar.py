"""CIFAR-10 (Krizhevsky 2009): 60,000 RGB 32x32 images, from the official binary version.

The version that most programs read is a pickle, which can run arbitrary code. The binary one is six files of
10,000 records: a label 0..9, then the red, the green and the blue plane of a 32x32 image, row after row.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets import download as downloads
from datasets.arrays import ArrayDataset
from datasets.files import open_regular, read_bytes
from datasets.holdout import check_options, official_split
from datasets.spec import DataError
from datasets.views import UInt8, Views

ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"  # as TensorFlow Datasets 4.9 records it
TRAIN_FILES, TEST_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)
_MOST_BYTES = 2**29  # the archive has 170 MB
NUM_RECORDS, RECORD_BYTES = 10_000, 1 + 3 * 32 * 32  # of one file


def check_archive(path: Path) -> None:
    """Refuse an archive that is not the official one, before unpacking any of it."""
    with open_regular(path, _MOST_BYTES) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise DataError(
            f"{path} is not the official archive (SHA-256 {digest}, expected {SHA256}); download it again from {URL}"
        )


def _from_archive(path: Path, names: Sequence[str]) -> list[bytes]:
    """Content of some files of the official archive, which is read as a stream without writing files."""
    check_archive(path)
    wanted = {f"{FOLDER}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name in wanted and member.isreg() else None
                if file is not None:
                    found[wanted[member.name]] = file.read(NUM_RECORDS * RECORD_BYTES + 1)
                if len(found) == len(names):
                    break
        return [found[name] for name in names]
    except Exception as error:  # bytes that imitate the official ones can make tarfile raise anything
        raise DataError(f"{path} cannot be unpacked ({error!r}); download it again from {URL}") from error


def _from_folder(folder: Path, names: Sequence[str]) -> list[bytes]:
    try:
        return [read_bytes(folder / name, _MOST_BYTES) for name in names]
    except DataError as error:
        raise DataError(f"{str(error).partition('; ')[0]}; unpack {ARCHIVE} there again, from {URL}") from error


def decode(content: bytes, where: str) -> UInt8:
    """Images uint8 [NUM_RECORDS, 3, 32, 32] of one file; DataError unless it has the right size and labels."""
    if len(content) != NUM_RECORDS * RECORD_BYTES:
        more = "more" if len(content) > NUM_RECORDS * RECORD_BYTES else f"{len(content):,}"
        raise DataError(
            f"{where} has {more} bytes, not {NUM_RECORDS:,} records of {RECORD_BYTES:,}; download it again from {URL}"
        )
    records = np.frombuffer(content, np.uint8).reshape(NUM_RECORDS, RECORD_BYTES)
    if records[:, 0].max() > 9:
        raise DataError(f"{where} has a label {records[:, 0].max()}, not 0 to 9; download it again from {URL}")
    return records[:, 1:].reshape(NUM_RECORDS, 3, 32, 32)


def _read(root: Path, train: bool, download: bool) -> UInt8:
    """Official training or test images, uint8 [N, 3, 32, 32], from the unpacked folder or else from the archive."""
    names, folder, archive = TRAIN_FILES if train else TEST_FILES, root / FOLDER, root / ARCHIVE
    if download and not folder.is_dir() and not archive.exists():
        downloads.fetch(URL, archive, check_archive)
    if not folder.is_dir() and not archive.is_file():
        raise DataError(
            f"no cifar10 in {root}; download it (--download), or put {ARCHIVE} there, packed or unpacked "
            f"(the binary version of {URL}: the Python version is a pickle and is not read)"
        )
    contents = _from_folder(folder, names) if folder.is_dir() else _from_archive(archive, names)
    where = folder if folder.is_dir() else archive
    return np.concatenate([decode(content, f"{where}: {name}") for name, content in zip(names, contents, strict=True)])


def open_cifar10(
    root: Path,
    split: str = "train",
    *,
    num_bits: int = 8,
    hflip: bool = False,
    num_valid: int = 0,
    seed: int = 0,
    download: bool = False,
) -> ArrayDataset:
    """Open CIFAR-10, RGB 32x32: 50,000 / 10,000 images for train / test, as published models are trained and tested.

    `num_valid` moves the last training images to split valid: 5,000 leaves 45,000. `hflip` mirrors at random in split
    train only. `root` holds the archive `cifar-10-binary.tar.gz`, checked by its SHA-256, or what it
    unpacks to, which is read faster.
    """
    check_options("cifar10", split, num_bits)
    flips = hflip and split == "train"
    more = {"hflip": flips} | ({"seed": seed} if flips else {})
    pixels = _read(root, split != "test", download)
    views = Views(seed=seed, hflip=flips)
    return official_split("cifar10", pixels, split, num_valid=num_valid, num_bits=num_bits, views=views, more=more)
