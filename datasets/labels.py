"""Labels for your own images from a CSV file with a row for each image and a column for each factor."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets.arrays import Factors
from datasets.files import LARGEST_TEXT_FILE, normalised, read_text
from datasets.spec import DataError

_MOST_NAMED = 5
_HOW = "the first column names the images, every other column is a factor"


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV file: the header, and each row with its line number. Comma, semicolon or tab, as the header has it.

    Raises:
        DataError: no header with two columns, or a row of another length (with its line).
    """
    text = read_text(path, LARGEST_TEXT_FILE)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.reader(text.splitlines(), delimiter=delimiter)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file ({error}); {_HOW}") from error
    if not lines or len(lines[0][1]) < 2:
        raise DataError(f"{path} has no header of two columns or more; {_HOW}")
    (_, header), *rows = lines
    if len(set(header)) < len(header) or not all(header[1:]):
        raise DataError(
            f"{path}: two columns have the same name, or one has none; give each a name of its own ({_HOW})"
        )
    for number, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path} line {number}: {len(row)} values for {len(header)} columns; correct the row")
    return header, rows


def _keys(name: str) -> list[str]:
    """Keys that may name an image in a table, best first: its path or its last part, with or without the ending."""
    path = normalised(name)
    last = path.rsplit("/", 1)[-1]
    return [path, path.rsplit(".", 1)[0], last, last.rsplit(".", 1)[0]]


def _row_of_each(path: Path, names: Sequence[str], table: list[tuple[int, list[str]]]) -> dict[str, int]:
    """Match images and rows: index into `table` by name. DataError names images without a row and double rows."""
    places: dict[str, int] = {}
    for place, (number, row) in enumerate(table):
        key = normalised(row[0].replace("\\", "/").removeprefix("./"))
        if key in places:
            raise DataError(f"{path} line {number}: {row[0]!r} has a row already; keep one")
        places[key] = place
    owners: dict[str, set[str]] = {}
    for name in names:
        for key in set(_keys(name)):
            owners.setdefault(key, set()).add(name)
    found: dict[str, int] = {}
    for name in names:
        # A part of a path names an image only if no other image has the same part.
        own = next((key for key in _keys(name) if key in places and owners[key] == {name}), None)
        if own is not None:
            found[name] = places[own]
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{path} has no row for {len(missing)} of {len(names)} images: {', '.join(missing[:_MOST_NAMED])}"
            f"{', ...' if len(missing) > _MOST_NAMED else ''}; name each by its path below the data's folder, "
            "or by its file name if that is unique"
        )
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _column(path: Path, name: str, cells: Sequence[str], lines: Sequence[int]) -> tuple[npt.NDArray[Any], int]:
    """Return a factor's values [N] and its number of classes, 0 if it is continuous.

    Whole numbers and texts are classes, 0 to K - 1 in ascending order; a column with other numbers is continuous.
    """
    numbers = [_number(cell) for cell in cells]
    if any(value is not None and not value.is_integer() for value in numbers):
        for line, cell, value in zip(lines, cells, numbers, strict=True):
            if value is None:
                raise DataError(
                    f"{path} line {line}: {name} is {cell!r}, but other rows have numbers; give a finite number"
                )
        return np.array(numbers, np.float64), 0
    for line, cell in zip(lines, cells, strict=True):
        if not cell:
            raise DataError(f"{path} line {line}: {name} is empty; give a value, or leave the column out")
    if all(value is not None for value in numbers):
        values, classes = np.unique(np.array(numbers, np.float64), return_inverse=True)
    else:
        values, classes = np.unique(np.array(cells), return_inverse=True)
    return classes.astype(np.int64), len(values)


def read_labels(path: Path, names: Sequence[str], chosen: Sequence[str]) -> tuple[Factors, str]:
    """Read the factors of images from a table.

    Args:
        path: a CSV file with a header. The first column names an image: by its path below the data's folder, or by its
            file name if that is unique, with or without ending. Every other column is a factor: whole numbers and
            texts are classes, other numbers are continuous.
        names: paths of the images of all splits, so that a class has the same number in each.
        chosen: paths of the images of the split.

    Returns:
        The factors of the split, and a one-line note: the factors, rows that name no image, and columns left out
        because nearly every image has a different text.

    Raises:
        DataError: images without a row, empty cells, or text among numbers.
    """
    header, table = read_table(path)
    found = _row_of_each(path, names, table)
    labelled = [table[found[name]] for name in names]
    lines = [number for number, _ in labelled]
    columns: dict[str, tuple[npt.NDArray[Any], int]] = {}
    left_out: list[str] = []
    for k, name in enumerate(header[1:], start=1):
        cells = [row[k] for _, row in labelled]
        values, size = _column(path, name, cells, lines)
        if size > max(2, len(names) // 2) and any(_number(cell) is None for cell in cells):
            left_out.append(name)
        else:
            columns[name] = values, size
    if not columns:
        raise DataError(f"{path} has a different text for nearly every image; give columns with classes or numbers")
    place = {name: row for row, name in enumerate(names)}
    rows = [place[name] for name in chosen]
    values = np.stack([column for column, _ in columns.values()], axis=1)[rows]
    said = [f"labels: {', '.join(columns)}"]
    if len(table) > len(names):
        said.append(f"rows of {path.name} without an image: {len(table) - len(names):,}")
    if left_out:
        said.append(f"columns left out, with a different text for nearly every image: {', '.join(left_out)}")
    sizes = tuple(size for _, size in columns.values())
    return Factors(names=tuple(columns), sizes=sizes, load=lambda: values), "; ".join(said)
