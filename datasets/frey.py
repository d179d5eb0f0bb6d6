"""Frey Faces (Roweis & Frey): 1,965 grey 28x20 frames of one video of one face."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datasets import download as downloads
from datasets.arrays import ArrayDataset, check_split
from datasets.cache import sha256
from datasets.files import read_bytes
from datasets.spec import DataError, check_bits
from datasets.views import Int64, UInt8

FILE_NAME = "frey_rawface.mat"
URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
SHA256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"  # of the pixels, [1965, 560] in C order
NUM_FRAMES, HEIGHT, WIDTH = 1965, 28, 20

_MATRIX, _COMPRESSED, _UINT8_CLASS = 14, 15, b"\x09"  # of the MATLAB 5 format
_MOST_BYTES = 2**22  # the pixels are a quarter of it

# Five sections of 393 frames of video, each: 283 train, 10 dropped, 40 valid, 10 dropped, 40 test, 10 dropped.
_SECTION = 393
_BLOCKS = {"train": (0, 283), "valid": (293, 333), "test": (343, 383)}


def split_frames(split: str) -> Int64:
    """Frames of a split: contiguous blocks of the video, 1,415 / 200 / 200 for train / valid / test, or all 1,965.

    Neighbouring frames are near-duplicates (they differ by 19 grey levels RMS, unrelated frames by 38), so a random
    split would leak. Ten frames are dropped between blocks; frames that far apart differ by 26.
    """
    check_split("frey", split)
    frames = np.arange(NUM_FRAMES)
    if split == "all":
        return frames
    start, stop = _BLOCKS[split]
    place = frames % _SECTION
    return np.flatnonzero((start <= place) & (place < stop))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of the elements of a MATLAB 5 file: content of up to four bytes is stored in the tag itself."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:
            yield kind & 0xFFFF, data[at + 4 : at + 4 + min(kind >> 16, 4)]
            at += 8
        else:
            yield kind, data[at + 8 : at + 8 + size]
            at += 8 + size + (-size % 8 if kind != _COMPRESSED else 0)


def _matrix(data: bytes, name: bytes) -> tuple[int, int, bytes]:
    """Rows, columns and values, column after column, of a uint8 matrix in a little-endian MATLAB 5 file.

    It replaces scipy's reader, in which fuzzing crashed the interpreter and exhausted the memory.
    """
    if data[124:128] != b"\x00\x01IM":
        raise ValueError("it is not a MATLAB 5 file")
    for kind, content in _elements(data[128:]):
        if kind == _COMPRESSED:
            content = zlib.decompressobj().decompress(content, _MOST_BYTES)
            kind, content = next(_elements(content), (0, b""))
        parts = [part for _, part in _elements(content)] if kind == _MATRIX else []
        if len(parts) >= 4 and parts[2] == name:
            if parts[0][:1] != _UINT8_CLASS or len(parts[1]) != 8:
                raise ValueError(f"its {name.decode()} is not a uint8 matrix")
            rows, columns = struct.unpack("<ii", parts[1])
            if len(parts[3]) != rows * columns:
                raise ValueError(f"its {name.decode()} is cut short")
            return rows, columns, parts[3]
    raise ValueError(f"it has no matrix {name.decode()}")


def _read(path: Path) -> UInt8:
    """Frames uint8 [1965, 1, 28, 20] of the public MATLAB file; DataError for anything else."""
    try:
        rows, columns, pixels = _matrix(read_bytes(path, 2 * _MOST_BYTES), b"ff")
    except (struct.error, zlib.error, ValueError, OSError) as error:
        raise DataError(f"{path} is not the Frey Faces file ({error}); download it from {URL}") from error
    if (rows, columns) != (HEIGHT * WIDTH, NUM_FRAMES):
        raise DataError(f"{path}: ff is uint8 ({rows}, {columns}), not uint8 (560, 1965); download it from {URL}")
    return np.frombuffer(pixels, np.uint8).reshape(NUM_FRAMES, 1, HEIGHT, WIDTH)


def _check(path: Path) -> UInt8:
    frames = _read(path)
    if sha256(frames) != SHA256:
        raise DataError(f"{path}: its pixels are not those of the public file; download it from {URL}")
    return frames


def _check_download(path: Path) -> None:
    _check(path)


def open_frey(
    root: Path, split: str = "train", *, num_bits: int = 8, download: bool = False, verify: bool = False
) -> ArrayDataset:
    """Open Frey Faces, grey 28x20, from `frey_rawface.mat` in `root`; split by `split_frames`.

    `verify` refuses pixels that are not those of the public file.
    """
    rows = split_frames(split)
    check_bits(num_bits)
    path = root / FILE_NAME
    if download and not path.exists():
        downloads.fetch(URL, path, _check_download)
    if not path.exists():
        raise DataError(f"no {FILE_NAME} in {root}; put it there (from {URL}), or name its folder (--data-root)")
    frames = _check(path) if verify else _read(path)
    recipe: dict[str, Any] = {
        "name": "frey",
        "split": split,
        "split_rule": "blocks of the video: 5 x (283, 40, 40) frames, 10 dropped between",
        "size": [HEIGHT, WIDTH],
        "num_bits": num_bits,
        "count": len(rows),
        "sha256": sha256(frames),
    }
    return ArrayDataset(name="frey", array=frames, rows=rows, num_bits=num_bits, recipe=recipe)
