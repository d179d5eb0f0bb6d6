"""Image files to uint8 arrays: decoded by a pool of threads, with every bad file named at once.

Any exception of a decoder counts as a fault of its file: it is recorded with the reason, and the other files are
decoded.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.cache import Begin, progress
from datasets.files import Files
from datasets.spec import DataError
from datasets.views import UInt8

T = TypeVar("T")
_log = logging.getLogger(__name__)

_CHUNK = 256  # images decoded between two writes
_MAX_NAMED = 100
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
)  # no others, because PIL runs external programs for some
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib"),
    *(".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
)

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# --- One image ------------------------------------------------------------------------------------------------------


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (as stored) if the EXIF data are missing, damaged or invalid."""
    if image.format == "TIFF":
        image.load()  # Pillow turns these itself, and removes the tag
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # a damaged block can make Pillow's reader raise anything
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def header(image: Image.Image) -> tuple[int, int, bool]:
    """Return height and width after orientation, and True for a grey image; few formats need decoding for that."""
    turned = orientation(image) >= 5  # these orientations exchange height and width
    width, height = reversed(image.size) if turned else image.size
    return height, width, _is_grey(image)


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        colours = np.asarray(image.convert("RGB"))  # colours in use: unused palette entries do not count
        return bool((colours == colours[..., :1]).all())
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16")


def upright(image: Image.Image, channels: int) -> Image.Image:
    """Apply the EXIF orientation of an image, and convert it to 8 bits, grey (1) or RGB (3).

    Transparent images are composited over black. 16-bit values are reduced to their upper 8 bits, as Pillow does with
    16-bit colour.

    Raises:
        ValueError: 32-bit integers or floats, whose range is unknown.
    """
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint16)
        turn = orientation(image)
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    elif image.mode.startswith(("I", "F")):
        raise ValueError(f"has mode {image.mode}, whose range of values is unknown")
    else:
        turn = orientation(image)
    if turn in _TURNS:
        image = image.transpose(_TURNS[turn])
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L" if channels == 1 else "RGB")


def crop_and_resize(image: Image.Image, box: tuple[float, float, float, float], height: int, width: int) -> Image.Image:
    """Cut out a box (left, top, right, bottom; pixels, fractions allowed) and resize it: bilinear with antialiasing.

    The image is first cut to the whole pixels around the box, because PIL's filter would otherwise read beyond the box.
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


# --- All of them ----------------------------------------------------------------------------------------------------


@contextmanager
def _only_bombs_are_errors() -> Iterator[None]:
    """Make Pillow's warning of a huge image an error, raised before it is decoded, and silence its other warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def each_image(
    files: Files, names: Sequence[str], use: Callable[[Image.Image, bytes], T], what: str
) -> Iterator[tuple[list[T | None], dict[str, str]]]:
    """Open images in a pool of threads and yield chunks of results (None for bad files) with the faults of bad files.

    `use` is given the opened image, which is not decoded yet, and the bytes of its file.
    """
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with (
        _only_bombs_are_errors(),
        files.reader() as read,
        ThreadPoolExecutor(workers) as pool,
        progress(len(names), what, "img") as bar,
    ):

        def one(name: str) -> tuple[T | None, str]:
            try:
                content = read(name)
                with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                    return use(image, content), ""
            except UnidentifiedImageError:
                return None, f"is not a {', '.join(FORMATS)} image"
            except Exception as error:  # damaged bytes can make a decoder raise anything
                return None, _why(error, files, name)

        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            results = list(pool.map(one, chunk))
            bad = {name: why for name, (_, why) in zip(chunk, results, strict=True) if why}
            yield [result for result, _ in results], bad
            bar.update(len(chunk))


def _why(error: Exception, files: Files, name: str) -> str:
    """Return one line on why a file is bad, without the path, which the list of bad files gives."""
    text = " ".join(str(error).split()).replace("; ", ", ").replace(f"{files.where / files.paths.get(name, name)} ", "")
    plain = isinstance(error, (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning))
    return text if text and plain else f"{type(error).__name__} {text}".strip()


def decode_all(
    begin: Begin,
    files: Files,
    names: Sequence[str],
    shape: tuple[int, int, int],
    to_pixels: Callable[[Image.Image], UInt8],
    skip_bad: bool,
) -> dict[str, Any]:
    """Decode all images into the cache. One DataError names all bad ones; with `skip_bad` they are recorded as zeros.

    The result also holds the first 64 bits of the SHA-256 of each file: it identifies images under any name.
    """
    write = begin((len(names), *shape))
    bad: dict[str, str] = {}
    contents: list[str] = []
    blank = np.zeros(shape, np.uint8)

    def use(image: Image.Image, content: bytes) -> tuple[UInt8, str]:
        return to_pixels(image), hashlib.sha256(content).hexdigest()[:16]

    for results, failed in each_image(files, names, use, f"decoding {files.where.name}"):
        bad |= failed
        contents += ["0" * 16 if result is None else result[1] for result in results]
        if skip_bad or not bad:  # after the first bad image, only search for others
            write(np.stack([blank if result is None else result[0] for result in results]))
    if bad and (not skip_bad or len(bad) == len(names)):
        refuse_bad(files.where, bad, len(names))
    if bad:
        _log.warning("%s: left out %d of %d images that cannot be used", files.where, len(bad), len(names))
    return {"bad": bad, "contents": "".join(contents)}


def refuse_bad(where: Path, bad: dict[str, str], total: int) -> None:
    """Raise a DataError that names the bad files, those with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in list(bad.items())[:_MAX_NAMED]:
        by_reason.setdefault(reason, []).append(name)
    named = ", ".join(
        f"{first} ({reason})" + (f" and for the same reason {', '.join(others)}" if others else "")
        for reason, (first, *others) in by_reason.items()
    )
    more = f" and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
    whole = len(bad) == total
    remedy = "give other images" if whole else "replace them, or leave them out with skip_bad=True (--skip-bad)"
    raise DataError(f"{len(bad)} of {total} images in {where} cannot be used: {named}{more}; {remedy}")
