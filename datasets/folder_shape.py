"""The common shape of a folder's images: given, or found from their headers."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

from datasets.decode import each_image, header, refuse_bad, upright
from datasets.files import Files
from datasets.spec import DataError

Channels = Literal["auto", 1, 3]
_FEW = 20  # images in colour or of another size are strays if they are fewer than one in this many
_MOST_CHECKED = 100


class _Header(NamedTuple):
    height: int
    width: int
    is_grey: bool


def _headers(files: Files, names: list[str]) -> dict[str, _Header]:
    """Headers of the images that have one; DataError if none has."""
    found: dict[str, _Header] = {}
    bad: dict[str, str] = {}
    done = 0
    for chunk, failed in each_image(
        files, names, lambda image, _: header(image), f"reading headers of {files.where.name}"
    ):
        for name, entry in zip(names[done : done + len(chunk)], chunk, strict=True):
            if entry is not None:
                found[name] = _Header(*entry)
        done += len(chunk)
        bad |= failed
    if not found:
        refuse_bad(files.where, bad, len(names))
    return found


def _without_broken(files: Files, found: dict[str, _Header]) -> dict[str, _Header]:
    """Headers without the few whose images cannot be decoded, which must not decide how the others are read."""
    sizes = Counter((entry.height, entry.width) for entry in found.values())
    usual = sizes.most_common(1)[0][0]
    mostly_grey = sum(entry.is_grey for entry in found.values()) * 2 > len(found)
    odd = [n for n, e in found.items() if (e.height, e.width) != usual or e.is_grey != mostly_grey]
    if not odd or len(odd) > max(_MOST_CHECKED, len(found) // _FEW):
        return found
    broken: set[str] = set()
    for _, failed in each_image(files, odd, lambda image, _: upright(image, 3), "checking unusual images"):
        broken |= failed.keys()
    return {name: entry for name, entry in found.items() if name not in broken} or found


def survey(
    files: Files, names: list[str], size: tuple[int, int] | None, channels: Channels
) -> tuple[tuple[int, int, int], list[str]]:
    """Find the common shape (C, H, W), from the headers if it is not given, and a note about it."""
    if size is not None and channels != "auto":
        return (channels, *size), []
    found = _without_broken(files, _headers(files, names))
    seen = Counter((entry.height, entry.width) for entry in found.values())
    usual = seen.most_common(1)[0][0]
    if size is None and len(seen) > 1:
        sizes = ", ".join(f"{h}x{w} ({n} images)" for (h, w), n in seen.most_common(4))
        odd = next(name for name, entry in found.items() if (entry.height, entry.width) != usual)
        raise DataError(
            f"the images in {files.where} have {len(seen)} sizes (height x width): {sizes}"
            f"{', ...' if len(seen) > 4 else ''}; give a size, to which all are cropped and resized (--image-size), "
            f"or remove those of another size, such as {odd}"
        )
    height, width = size or usual
    if channels != "auto":
        return (channels, height, width), []
    coloured = [name for name, entry in found.items() if not entry.is_grey]
    if not coloured or len(coloured) * _FEW >= len(found):
        return (3 if coloured else 1, height, width), []
    note = f"{len(coloured):,} of {len(found):,} images have colour but are read as grey ({coloured[0]}); --channels 3 keeps it"
    return (1, height, width), [note]
