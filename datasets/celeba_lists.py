"""CelebA's lists, as the official text files and as Kaggle's CSV files; they are checked completely when read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datasets.files import read_text
from datasets.spec import DataError

HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
PARTITION, ATTRIBUTES = "list_eval_partition", "list_attr_celeba"
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


class AttributeTable(NamedTuple):
    """The attributes of all listed images."""

    names: tuple[str, ...]
    rows: dict[str, int]  # by image, without ending
    values: npt.NDArray[np.uint8]  # {0, 1} [N, K]


def stem(name: str) -> str:
    """Return an image's name without its ending: copies as PNG keep the number."""
    head, dot, ending = name.rpartition(".")
    return head if dot and f".{ending.lower()}" in _IMAGE_ENDINGS else name


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the words of each non-empty line; words end at white space or commas."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.replace(",", " ").split()
        if words:
            yield number, words


def _is_image(word: str) -> bool:
    return word.lower().endswith(_IMAGE_ENDINGS)


def _wrong(path: Path, number: int, words: Sequence[str], why: str) -> DataError:
    return DataError(f"{path} line {number}: {' '.join(words)[:60]} {why}; take the official file ({HOME})")


def read_partition(path: Path) -> dict[str, int]:
    """Read the list of splits: file name -> 0 train, 1 valid, 2 test.

    Raises:
        DataError: a wrong line, an image listed twice, or no image at all.
    """
    splits: dict[str, int] = {}
    for number, words in _lines(path):
        if number == 1 and not _is_image(words[0]):
            continue  # the header of a CSV file
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise _wrong(path, number, words, "should read: <file name> <0, 1 or 2>")
        if words[0] in splits:
            raise _wrong(path, number, words, "is listed twice")
        splits[words[0]] = int(words[1])
    if not splits:
        raise DataError(f"{path} is empty; take the official file ({HOME})")
    return splits


def read_attributes(path: Path) -> AttributeTable:
    """Read the list of attributes: values -1 and 1, or 0 and 1, as classes 0 and 1.

    The first line may give the number of images; if it does, the number must be right.

    Raises:
        DataError: no names of attributes, a wrong line, or a number of images that differs from the stated one.
    """
    status = path.stat()
    return _read_attributes(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)  # cached, because three splits of a run read the same list, which takes a second
def _read_attributes(path: Path, _mtime: int, _size: int) -> AttributeTable:
    names: tuple[str, ...] = ()
    stated: int | None = None
    rows: dict[str, int] = {}
    values: list[bytes] = []
    kinds: set[str] = set()
    for number, words in _lines(path):
        if not names and stated is None and len(words) == 1 and words[0].isdecimal():
            stated = int(words[0])
            continue
        if not names:
            names = _attribute_names(path, number, words)
            continue
        image, *of_image = words
        if stem(image) in rows:
            raise _wrong(path, number, words, "is listed twice")
        kinds |= set(of_image)
        if len(of_image) != len(names) or not (kinds <= {"1", "-1"} or kinds <= {"1", "0"}):
            raise _wrong(path, number, [image], f"should have {len(names)} values of 1 or -1")
        rows[stem(image)] = len(rows)
        values.append(bytes(value == "1" for value in of_image))
    if not rows:
        raise DataError(f"{path} lists no images; take the official file ({HOME})")
    if stated not in (None, len(rows)):
        raise DataError(f"{path} states {stated:,} images but lists {len(rows):,}; take the official file ({HOME})")
    return AttributeTable(names, rows, np.frombuffer(b"".join(values), np.uint8).reshape(len(rows), len(names)))


def _attribute_names(path: Path, number: int, words: list[str]) -> tuple[str, ...]:
    names = words[1:] if words[0].lower() in ("image_id", "image", "filename", "file_name", "file", "name") else words
    are_values = all(word.lstrip("-").isdecimal() for word in names)
    if not names or _is_image(words[0]) or are_values or len(set(names)) < len(names):
        raise _wrong(path, number, words, "should name the attributes")
    return tuple(names)
