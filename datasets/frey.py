"""Frey Faces (Roweis & Frey): 1,965 grey 28x20 frames of one video of one face."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from datasets import download as downloads
from datasets.arrays import ArrayDataset, check_split
from datasets.cache import sha256
from datasets.spec import DataError, check_bits
from datasets.views import Int64, UInt8

FILE_NAME = "frey_rawface.mat"
URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
SHA256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"  # of the pixels, [1965, 560] in C order
NUM_FRAMES, HEIGHT, WIDTH = 1965, 28, 20

# Five sections of 393 frames of video, each: 283 train, 10 dropped, 40 valid, 10 dropped, 40 test, 10 dropped.
_SECTION = 393
_BLOCKS = {"train": (0, 283), "valid": (293, 333), "test": (343, 383)}


def split_frames(split: str) -> Int64:
    """Frames of a split: contiguous blocks of the video, 1,415 / 200 / 200 for train / valid / test, or all 1,965.

    Neighbouring frames are near-duplicates (frame to frame 19 grey levels RMS; unrelated frames 38), so a random split
    would leak: ten frames between blocks are dropped, after which two frames differ by 26.
    """
    check_split("frey", split)
    frames = np.arange(NUM_FRAMES)
    if split == "all":
        return frames
    start, stop = _BLOCKS[split]
    place = frames % _SECTION
    return np.flatnonzero((start <= place) & (place < stop))


def _read(path: Path) -> UInt8:
    """Frames uint8 [1965, 1, 28, 20] of the public MATLAB file; DataError for anything else."""
    import scipy.io  # half a second, and used nowhere else
    from scipy.io.matlab import MatReadError

    try:
        ff = scipy.io.loadmat(path, variable_names=["ff"])["ff"]
    except (MatReadError, zlib.error, ValueError, LookupError, TypeError, NotImplementedError, OSError) as error:
        raise DataError(f"{path} is not the Frey Faces file ({error!r}); download it from {URL}") from error
    if ff.shape != (HEIGHT * WIDTH, NUM_FRAMES) or ff.dtype != np.uint8:
        raise DataError(f"{path}: ff is {ff.dtype} {ff.shape}, not uint8 (560, 1965); download it from {URL}")
    return np.ascontiguousarray(ff.T).reshape(NUM_FRAMES, 1, HEIGHT, WIDTH)


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
    """Open Frey Faces, grey 28x20, from `frey_rawface.mat` in `root`; `split_frames` says how it is split.

    `verify` refuses pixels that are not those of the public file.
    """
    rows = split_frames(split)
    check_bits(num_bits)
    path = root / FILE_NAME
    if download and not path.exists():
        downloads.fetch(URL, path, _check_download)
    if not path.is_file():
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
