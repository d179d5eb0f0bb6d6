"""dSprites (Matthey et al. 2017): 737,280 binary 64x64 images of five factors, from the official file or rendered.

The rule of rendering was recovered from official images: the vertices of a polygon are rounded to 1/256 px, and a pixel
is white if its centre lies inside. A few images in ten thousand may differ from the official file by a pixel, so
rendered data are always called "dsprites (rendered)".
"""

from __future__ import annotations

import hashlib
import logging
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets import download as downloads
from datasets.arrays import SPLITS, Indices, Storage, as_indices, check_split, item
from datasets.cache import Begin, cache_folders, open_cached, progress
from datasets.files import open_regular
from datasets.spec import DataError, ImageSpec
from datasets.views import Int64, UInt8, UInt64, hash64, hash_split

FACTOR_NAMES = ("shape", "scale", "orientation", "posX", "posY")
FACTOR_SIZES = (3, 6, 40, 32, 32)
NUM_IMAGES = 737_280
FILE_NAME = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
URL = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{FILE_NAME}"
BLOB_ID = "d98996d3f8ee1550e06b9d4ed78d0beb478910d5"

_MOST_BYTES = 2**30  # of the official file, which has 27 MB
_RADIUS = 0.15 * 64  # px
_POSITIONS = FACTOR_SIZES[3] * FACTOR_SIZES[4]
_log = logging.getLogger(__name__)
Float64 = npt.NDArray[np.float64]


# --- Drawing --------------------------------------------------------------------------------------------------------


def _outline(shape: int) -> tuple[Float64, Float64]:
    """Polygon of a shape at scale 1: u to the right and v down, in px."""
    if shape == 0:
        return _RADIUS * np.array([-1.0, 1, 1, -1]), _RADIUS * np.array([-1.0, -1, 1, 1])
    if shape == 1:
        t = 2 * np.pi * np.arange(100) / 100
        return 1.33 * _RADIUS * np.cos(t), _RADIUS / 1.33 * np.sin(t)
    t = 2 * np.pi * np.arange(150) / 150
    wave = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _RADIUS * np.sin(t) ** 3, -2 * _RADIUS / 29 * wave - 0.15 * _RADIUS


def _vertices(shape: int, scale: int, orientation: int, pos_x: Int64, pos_y: Int64) -> tuple[Float64, Float64]:
    """Rounded vertices in 1/256 px: x [A, V] for the A values of posX, y [B, V] for the B values of posY."""
    u, v = _outline(shape)
    size, angle = np.linspace(0.5, 1, 6)[scale], np.linspace(0, 2 * np.pi, 40)[orientation]
    place = 16 + 32 * np.linspace(0, 1, 32)
    x = place[pos_x, None] + size * (np.cos(angle) * u + np.sin(angle) * v)
    y = place[pos_y, None] + size * (-np.sin(angle) * u + np.cos(angle) * v)
    return np.rint(256 * x), np.rint(256 * y)


def _draw(shape: int, scale: int, orientation: int, pos_x: Int64, pos_y: Int64) -> UInt64:
    """Draw one sprite at A x B positions: a row of 64 pixels is a word, leftmost pixel first. uint64 [A, B, 64]."""
    x, y = _vertices(shape, scale, orientation, pos_x, pos_y)
    x2, y2 = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)
    centre = (2.0 * np.arange(64) + 1) * 128
    crosses = (y[:, None] < centre[:, None]) != (y2[:, None] < centre[:, None])  # [B, 64, V]
    at_y, row, edge = np.nonzero(crosses)
    along = (centre[row] - y[at_y, edge]) / (y2[at_y, edge] - y[at_y, edge])
    x_cross = x[:, edge] + along * (x2[:, edge] - x[:, edge])  # [A, crossings]
    column = np.clip(np.ceil((x_cross - 128) / 256), 0, 64).astype(np.int64)
    # Toggling all pixels from a column on, at every crossing, leaves the parity of the crossings to the left.
    from_column = np.array([(2**64 - 1) >> c for c in range(65)], np.uint64)
    words = np.zeros((len(pos_x), len(pos_y), 64), np.uint64)
    np.bitwise_xor.at(words, (np.arange(len(pos_x))[:, None], at_y, row), from_column[column])
    return words


def _pack(words: UInt64) -> UInt8:
    """Turn rows of pixels [..., 64] words into bits in official order, uint8 [..., 512], as np.packbits packs them."""
    packed: UInt8 = words.astype(">u8").view(np.uint8)
    return packed


def _unpack(packed: UInt8) -> UInt8:
    """Images {0, 1} [N, 64, 64] from packed ones [N, 512]."""
    return np.unpackbits(packed, axis=1).reshape(-1, 64, 64)


def render(classes: npt.ArrayLike) -> UInt8:
    """Draw images from classes int [N, 5] (shape, scale, orientation, posX, posY): uint8 {0, 1} [N, 64, 64].

    Raises:
        ValueError: classes are outside `FACTOR_SIZES`.
    """
    table = _check_classes(classes)
    packed = np.empty((len(table), 512), np.uint8)
    sprites, sprite_of = np.unique(table[:, :3], axis=0, return_inverse=True)
    for index, (shape, scale, orientation) in enumerate(sprites):
        members = np.flatnonzero(sprite_of.ravel() == index)
        pos_x, at_x = np.unique(table[members, 3], return_inverse=True)
        pos_y, at_y = np.unique(table[members, 4], return_inverse=True)
        packed[members] = _pack(_draw(shape, scale, orientation, pos_x, pos_y)[at_x, at_y])
    return _unpack(packed)


def _check_classes(classes: npt.ArrayLike) -> Int64:
    table = np.asarray(classes)
    if table.ndim != 2 or table.shape[1] != 5 or table.dtype.kind not in "iu":
        raise ValueError(
            f"dSprites classes must be integers [N, 5] ({', '.join(FACTOR_NAMES)}); "
            f"got {table.dtype} of shape {table.shape}"
        )
    for name, size, column in zip(FACTOR_NAMES, FACTOR_SIZES, table.T, strict=True):
        if len(column) and (column.min() < 0 or column.max() >= size):
            bad = column[(column < 0) | (column >= size)][0]
            raise ValueError(f"dSprites has no {name} class {bad}; choose 0 to {size - 1}")
    return table.astype(np.int64)


def _render_grid(begin: Begin) -> dict[str, Any]:
    write = begin((NUM_IMAGES, 512))
    every = np.arange(32)
    sprites = list(np.ndindex(*FACTOR_SIZES[:3]))
    with progress(len(sprites), "rendering dSprites", "sprite") as bar:
        for shape, scale, orientation in sprites:
            write(_pack(_draw(shape, scale, orientation, every, every)).reshape(_POSITIONS, 512))
            bar.update()
    return {}


# --- The official file ----------------------------------------------------------------------------------------------


def check_official(path: Path) -> None:
    """Refuse a file that is not the official one, by its git blob id."""
    with open_regular(path, _MOST_BYTES) as file:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while block := file.read(2**20):
            digest.update(block)
    blob = digest.hexdigest()
    if blob != BLOB_ID:
        raise DataError(
            f"{path} is not the official dSprites file (git blob id {blob}, expected {BLOB_ID}); "
            f"download it again from {URL}, or use source rendered"
        )


def _npy_rows(
    path: Path, member: str, shape: tuple[int, ...], dtype: npt.DTypeLike, rows: int
) -> Iterator[npt.NDArray[Any]]:
    """Stream an array of this shape and type out of an npz in blocks of rows: never all of its 3 GB in RAM.

    Nothing is unpickled. DataError for any other content; zipfile checks a CRC where the array ends.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(f"{member}.npy")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("compressed in a way that NumPy does not write")
            with archive.open(entry) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("another version of the npy format")
                found = np.lib.format.read_array_header_1_0(file)
                if found != (shape, False, np.dtype(dtype)):
                    raise ValueError(f"{found[2]} {found[0]}, not {np.dtype(dtype)} {shape}")
                row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
                for start in range(0, shape[0], rows):
                    count = min(rows, shape[0] - start)
                    yield np.frombuffer(file.read(count * row_bytes), dtype).reshape(count, *shape[1:])
                if file.read(1):
                    raise ValueError("it continues after its end")
    except Exception as error:  # damaged bytes can end the readers of zip and npy with anything
        raise DataError(
            f"{path}: {member} cannot be read ({str(error)[:100]!r}); download it again from {URL}"
        ) from error


def pack_official(path: Path, begin: Begin) -> dict[str, Any]:
    """Bit-pack the images of the official file, after checking that they are in official order."""
    wanted = np.stack(np.unravel_index(np.arange(NUM_IMAGES), FACTOR_SIZES), axis=1)
    columns = (NUM_IMAGES, 1 + len(FACTOR_NAMES))  # the first is the constant colour
    (classes,) = _npy_rows(path, "latents_classes", columns, np.int64, rows=NUM_IMAGES)
    if not np.array_equal(classes[:, 1:], wanted):
        raise DataError(f"{path}: its images are not in official order; download it again from {URL}")
    write = begin((NUM_IMAGES, 512))
    with progress(NUM_IMAGES, "packing dSprites", "img") as bar:
        for images in _npy_rows(path, "imgs", (NUM_IMAGES, 64, 64), np.uint8, rows=_POSITIONS):
            write(np.packbits(images.reshape(len(images), -1), axis=1))
            bar.update(len(images))
    return {}


# --- The data set ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DSprites:
    """The images of a split, bit-packed; see `open_dsprites`."""

    name: str
    grid: UInt8  # [737280, 512]
    rows: Int64  # [N] of the grid
    recipe: dict[str, Any]
    note: str = ""
    spec: ImageSpec = ImageSpec(channels=1, height=64, width=64, num_bits=1)  # noqa: RUF009 (frozen)
    factor_names: tuple[str, ...] = FACTOR_NAMES
    factor_sizes: tuple[int, ...] = FACTOR_SIZES

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`: uint8 {0, 1} `[1, 64, 64]`."""
        return item(self, index)

    @property
    def storage(self) -> Storage:
        """All images bit-packed, to keep on a device."""
        return Storage(self.grid, self.rows)

    def images(self, indices: Indices, draw: int = 0) -> Tensor:
        """Return uint8 {0, 1} `[B, 1, 64, 64]`; `draw` is ignored, nothing is random."""
        return torch.from_numpy(_unpack(self.grid[self.rows[as_indices(indices, len(self))]])[:, None])

    def factors(self, indices: Indices) -> Tensor:
        """Return the classes of the five factors: int64 `[B, 5]`."""
        rows = self.rows[as_indices(indices, len(self))]
        return torch.from_numpy(np.stack(np.unravel_index(rows, FACTOR_SIZES), axis=1).astype(np.int64))


def split_rows(split: str) -> Int64:
    """Indices of a split in official order: "all", or 90/5/5 % by a fixed hash of the index.

    Orientation 39 is the same image as orientation 0 and goes to the same split. (0.4 % of the images coincide with
    another by accident; they may sit in different splits.)
    """
    check_split("dsprites", split)
    index = np.arange(NUM_IMAGES)
    if split == "all":
        return index
    same_image = np.stack(np.unravel_index(index, FACTOR_SIZES))
    same_image[2] %= 39
    return np.flatnonzero(
        hash_split(hash64(np.ravel_multi_index(tuple(same_image), FACTOR_SIZES))) == SPLITS.index(split)
    )


def open_dsprites(
    root: Path,
    split: str = "train",
    *,
    source: Literal["auto", "official", "rendered"] = "auto",
    cache_dir: str | Path | None = None,
    download: bool = False,
    verify: bool = False,
) -> DSprites:
    """Open dSprites, binary 64x64, five factors (the constant colour is dropped).

    Splits train/valid/test (90/5/5 %, `split_rows`) and all. `source`: the official npz in `root`, checked by its git
    blob id; "rendered"; or "auto", the official file if it exists. Either is kept bit-packed
    (0.38 GB) in the cache.
    """
    rows = split_rows(split)
    if source not in ("auto", "official", "rendered"):
        raise DataError(f"dsprites has no source {source!r}; choose auto, official or rendered")
    path = root / FILE_NAME
    if download and source != "rendered" and not path.exists():
        downloads.fetch(URL, path, check_official)
    if source == "official" and not path.exists():
        raise DataError(f"no {FILE_NAME} in {root}; put it there (from {URL}), or use source rendered")
    official = path.exists() and source != "rendered"
    if source == "auto" and not official:
        _log.info("dsprites: no %s in %s; using rendered images", FILE_NAME, root)
    kind = "official" if official else "rendered"
    if official:
        check_official(path)
    cached = open_cached(
        cache_folders(root, cache_dir),
        f"dsprites-{kind}",
        {"name": "dsprites", "source": kind, "rule": 1},
        BLOB_ID if official else hashlib.sha256(b"drawn by rule 1").hexdigest(),
        (lambda begin: pack_official(path, begin)) if official else _render_grid,
        verify,
    )
    recipe: dict[str, Any] = {
        "name": "dsprites",
        "source": kind,
        "split": split,
        "split_rule": "hash of the index, 90/5/5",
    }
    recipe |= {"size": [64, 64], "num_bits": 1, "count": len(rows), "sha256": cached.meta["sha256"]}
    return DSprites(name=f"dsprites ({kind})", grid=cached.array, rows=rows, recipe=recipe)
