"""Image files to uint8 arrays: listed, decoded by a pool of threads, with every bad file named at once."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.cache import Begin, progress
from datasets.spec import DataError
from datasets.views import UInt8

T = TypeVar("T")
_log = logging.getLogger(__name__)

_CHUNK = 256  # images decoded between two writes
_MAX_NAMED = 100
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # and no others: PIL runs programs for some

# What PIL raises for a file that is no image, is cut off, or is a decompression bomb.
_BAD = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Image files by name, in a folder or in a zip; `stamps` has what tells that one changed (size, time or CRC)."""

    where: Path
    stamps: dict[str, tuple[int, int]]
    zip_prefix: str | None = None

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """Give a function that returns the bytes of a file; any number of threads may call it."""
        if self.zip_prefix is None:
            yield lambda name: (self.where / name).read_bytes()
        else:
            prefix = self.zip_prefix
            with zipfile.ZipFile(self.where) as archive:
                yield lambda name: archive.read(prefix + name)

    def fingerprint(self, names: Sequence[str]) -> str:
        """SHA-256 over names and stamps, in this order."""
        digest = hashlib.sha256()
        for name in names:
            digest.update(
                f"{name}\0{self.stamps[name][0]}\0{self.stamps[name][1]}\n".encode("utf-8", "surrogateescape")
            )
        return digest.hexdigest()


def folder_files(folder: Path, suffixes: tuple[str, ...]) -> Files:
    """List the image files of a tree, by path relative to it; hidden files and folders are skipped."""
    stamps: dict[str, tuple[int, int]] = {}
    pending: list[tuple[Path, str, frozenset[Path]]] = [(folder, "", frozenset())]
    while pending:
        directory, prefix, above = pending.pop()
        real = directory.resolve()
        if real in above:
            continue  # a link back up
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((Path(entry.path), f"{prefix}{entry.name}/", above | {real}))
                elif entry.name.lower().endswith(suffixes):
                    stamps[prefix + entry.name] = _stamp(entry)
    return Files(where=folder, stamps=stamps)


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        stat = entry.stat()
    except FileNotFoundError:
        return -1, -1  # a dangling link: listed, so that decoding names it
    return stat.st_size, stat.st_mtime_ns


def zip_files(path: Path, prefix: str) -> Files:
    """List the members of a zip below `prefix`; DataError where it is no zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.startswith(prefix) and not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} cannot be read as a zip ({error}); download it again") from error
    stamps = {info.filename.removeprefix(prefix): (info.file_size, info.CRC) for info in members}
    return Files(where=path, stamps=stamps, zip_prefix=prefix)


def crop_and_resize(image: Image.Image, box: tuple[float, float, float, float], height: int, width: int) -> Image.Image:
    """Cut out a box (left, top, right, bottom; pixels, fractions allowed) and resize it: bilinear with antialiasing.

    The image is first cut to the whole pixels around the box, for PIL's filter would otherwise look beyond the box.
    With a box of whole pixels this is exactly a crop and a resize.
    """
    left, top = int(np.floor(box[0])), int(np.floor(box[1]))
    image = image.crop((left, top, int(np.ceil(box[2])), int(np.ceil(box[3]))))
    inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=inner)


def fit_box(box: tuple[float, float, float, float], height: int, width: int) -> tuple[float, float, float, float]:
    """Return the largest box of the aspect ratio height : width in the middle of a box."""
    left, top, right, bottom = box
    cut_x = max(0.0, (right - left) - (bottom - top) * width / height) / 2
    cut_y = max(0.0, (bottom - top) - (right - left) * height / width) / 2
    return left + cut_x, top + cut_y, right - cut_x, bottom - cut_y


def to_array(image: Image.Image) -> UInt8:
    """Convert a grey or RGB image to uint8 [C, H, W]."""
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@contextmanager
def _bombs_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def each_image(
    files: Files, names: Sequence[str], use: Callable[[Image.Image], T], what: str
) -> Iterator[tuple[list[T | None], dict[str, str]]]:
    """Open every image in turn in a pool of threads and yield chunks: results (None for bad files), and what is bad."""
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with (
        _bombs_are_errors(),
        files.reader() as read,
        ThreadPoolExecutor(workers) as pool,
        progress(len(names), what, "img") as bar,
    ):

        def one(name: str) -> tuple[T | None, str]:
            try:
                with Image.open(io.BytesIO(read(name)), formats=_FORMATS) as image:
                    return use(image), ""
            except UnidentifiedImageError:
                return None, f"is no {', '.join(_FORMATS)} image"
            except _BAD as error:
                return None, " ".join(str(error).split()) or type(error).__name__

        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            results = list(pool.map(one, chunk))
            bad = {name: why for name, (_, why) in zip(chunk, results, strict=True) if why}
            yield [result for result, _ in results], bad
            bar.update(len(chunk))


def decode_all(
    begin: Begin,
    files: Files,
    names: Sequence[str],
    shape: tuple[int, int, int],
    to_pixels: Callable[[Image.Image], UInt8],
    skip_bad: bool,
) -> dict[str, Any]:
    """Decode all images into the cache. Bad ones: all named in one DataError, or zeros and recorded with `skip_bad`."""
    write = begin((len(names), *shape))
    bad: dict[str, str] = {}
    blank = np.zeros(shape, np.uint8)
    for arrays, failed in each_image(files, names, to_pixels, f"decoding {files.where.name}"):
        bad |= failed
        if skip_bad or not bad:  # once one is bad, only look for the others
            write(np.stack([blank if array is None else array for array in arrays]))
    if bad and (not skip_bad or len(bad) == len(names)):
        refuse_bad(files.where, bad, len(names))
    if bad:
        _log.warning("%s: left out %d of %d images that cannot be used", files.where, len(bad), len(names))
    return {"bad": bad, "names_sha256": hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()}


def refuse_bad(where: Path, bad: dict[str, str], total: int) -> None:
    """Raise a DataError that names the bad files."""
    named = ", ".join(f"{name} ({reason})" for name, reason in list(bad.items())[:_MAX_NAMED])
    more = f" and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
    raise DataError(
        f"{len(bad)} of {total} images in {where} cannot be used: {named}{more}; "
        "replace them, or leave them out with skip_bad=True (--skip-bad)"
    )
