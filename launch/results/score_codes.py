"""Codes of other frameworks, from npz, csv or parquet files: reading and scoring."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import metrics
from launch.machine import files
from launch.results import scores
from launch.results.score_run import ScoreConfig, announce, made_with
from launch.results.scores import Floats
from metrics.factors import Factors, as_table

_CODE, _VARIANCE = re.compile(r"(z|code|latent)[ _-]?\d+", re.I), re.compile(r"(var|variance)[ _-]?\d+", re.I)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.I)
_MISSING = frozenset(
    {"", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "None", "NULL", "null", "#DIV/0!", "#VALUE!", "#REF!"}
)
MOST_UNITS = 64  # largest number of latents that are probed one by one by default
STRAY_SHARE = 0.1  # largest share of words that are taken for mistakes in a column of numbers
_SAVE = "save it with np.savez(path, codes=..., factors=...)"
_NAME = "name the columns of codes z0, z1, ..., those of variances var0, var1, ..., and factors as you like"


@dataclass(frozen=True, eq=False)
class CodesFile:
    """Content of a file of codes."""

    codes: Floats  # [N, D]
    factors: Factors | None  # [N, K] with their names
    variances: Floats | None  # [N, D] of the posteriors
    sha256: str  # digest of the file
    ignored: tuple[str, ...] = ()  # columns that only number or name the rows, such as an index or file names


def read_codes(path: Path) -> CodesFile:
    """Read an npz (keys codes, factors, variances), or a csv or parquet table with named columns; nothing is unpickled.

    Raises:
        ValueError: no such file, another format, pickled content, no codes, or rows that are not valid.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; {_SAVE}")
    readers = {".csv": _from_csv, ".tsv": _from_csv, ".parquet": _from_parquet}
    codes, factors, variances = readers.get(path.suffix.lower(), _from_npz)(path)
    named = factors.items() if isinstance(factors, dict) else ()
    ignored = tuple(name for name, column in named if _names_rows(name, column))
    if ignored:
        factors = {name: column for name, column in named if name not in ignored} or None
    checked = metrics.arrays.as_codes(codes)
    table = None if factors is None else as_table(factors)
    for name, other in (("factors", table), ("variances", variances)):
        if other is not None and len(other) != len(checked):
            raise ValueError(
                f"codes {checked.shape} and {name} {other.shape} of {path} differ in their rows; save both alike"
            )
    digest = files.sha256(path)
    return CodesFile(checked, table, None if variances is None else metrics.arrays.as_codes(variances), digest, ignored)


def _names_rows(name: str, column: npt.NDArray[Any]) -> bool:
    """True if a column is an unnamed index, or has a different text in every row."""
    if name.strip() == "" or name == "__index_level_0__":
        return True
    if column.dtype.kind not in "OUS" or len(np.unique(column.astype(str))) < max(len(column), 2):
        return False
    return not _is_number(str(column[0]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _from_npz(path: Path) -> tuple[Any, Any, Any]:
    try:
        arrays = files.read_npz(path, remedy=_SAVE)
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"{path} holds pickled objects, which are never loaded; save plain numeric arrays with np.savez"
        ) from error
    if "codes" not in arrays:
        raise ValueError(f"{path} has the keys {sorted(arrays)}; {_SAVE}")
    factors, given = arrays.get("factors"), arrays.get("factor_names")
    if factors is None or given is None or factors.ndim != 2 or given.shape != factors.shape[1:]:
        return arrays["codes"], factors, arrays.get("variances")
    return arrays["codes"], dict(zip(given.astype(str).tolist(), factors.T, strict=True)), arrays.get("variances")


def _from_csv(path: Path) -> tuple[Any, Any, Any]:
    """Read a table as spreadsheets and data frames write it; rows are numbered as a spreadsheet shows them."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}); save it again as a csv in UTF-8") from error
    separator = max(",;\t", key="".join(lines[:1]).count)
    if lines and re.fullmatch(r"sep=[,;\t]", lines[0], re.I):  # as Excel writes and reads it
        separator, lines = lines[0][-1], lines[1:]
    numbered = [
        (number, row)
        for number, row in enumerate(csv.reader(lines, delimiter=separator), 1)
        if any(cell.strip() for cell in row)
    ]
    if len(numbered) < 2:
        raise ValueError(f"{path} has no rows below its names; {_NAME}")
    names, body = [name.strip() for name in numbered[0][1]], numbered[1:]
    for name in names:
        if name and names.count(name) > 1:
            raise ValueError(f"{path} has the column {name} twice; give each column a name of its own")
    for number, row in body:
        if len(row) != len(names):
            raise ValueError(f"{path}: row {number} has {len(row)} cells under {len(names)} names; correct that row")
    numbers, columns = [number for number, _ in body], zip(*(row for _, row in body), strict=True)
    cells_of = zip(names, columns, strict=True)
    return _by_name({n: _column(cells, numbers, n, f"{path}, column {n}") for n, cells in cells_of}, path)


def _column(cells: Sequence[str], numbers: list[int], name: str, where: str) -> npt.NDArray[Any]:
    """The column as numbers if all cells are numbers, else as text.

    Raises:
        ValueError: a value is missing, has a decimal comma, or is one of a few words among numbers; as text, such a column
            would be a factor with a class for nearly every row.
    """
    column = np.array(cells)
    try:
        numeric = column.astype(np.float64)
        if np.isfinite(numeric).all():
            return numeric
    except ValueError:
        pass
    if not name:  # a column without a name is not used
        return column
    for number, cell in zip(numbers, cells, strict=True):
        if cell.strip() in _MISSING:
            held = f"holds {cell!r}" if cell.strip() else "is empty"
            raise ValueError(f"{where}: row {number} {held}; leave out rows without a value")
    words = [(number, cell) for number, cell in zip(numbers, cells, strict=True) if not _is_number(cell)]
    if words and all(_DECIMAL_COMMA.fullmatch(cell.strip()) for _, cell in words):
        raise ValueError(f"{where} has numbers such as {words[0][1]!r}; save the table with a decimal point")
    if words and (_CODE.fullmatch(name) or _VARIANCE.fullmatch(name) or len(words) <= STRAY_SHARE * len(cells)):
        number, cell = words[0]
        raise ValueError(
            f"{where}: row {number} holds {cell!r}, which is not a number; correct it or leave out that row"
        )
    return column


def _from_parquet(path: Path) -> tuple[Any, Any, Any]:
    if find_spec("pyarrow") is None:
        raise ValueError(f"{path} needs pyarrow, which is not installed; pip install pyarrow, or save a csv or an npz")
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable parquet file ({str(error)[:80]}); save it again") from error
    return _by_name({name: table[name].to_numpy() for name in table.column_names}, path)


def _by_name(columns: dict[str, Any], path: Path) -> tuple[Any, Any, Any]:
    """(codes, factors, variances) of a table, told apart by the names of the columns."""
    codes = {name: column for name, column in columns.items() if _CODE.fullmatch(name)}
    variances = {name: column for name, column in columns.items() if _VARIANCE.fullmatch(name)}
    factors = {name: column for name, column in columns.items() if name not in codes.keys() | variances.keys()}
    if not codes:
        raise ValueError(f"{path} has the columns {list(columns)[:8]} and no codes among them; {_NAME}")
    return _stacked(codes, path), factors or None, _stacked(variances, path) if variances else None


def _stacked(columns: dict[str, Any], path: Path) -> Floats:
    """Stack numbered columns in the order of their numbers, [N, D]."""
    ordered = sorted(columns, key=lambda name: int(re.sub(r"\D", "", name)))
    for name in ordered:
        try:
            columns[name] = columns[name].astype(np.float64)
        except ValueError as error:
            raise ValueError(f"{path}, column {name}: {error}; codes and variances are numbers") from error
    return np.stack([columns[name] for name in ordered], axis=1)


def grid_of(codes: Floats, factors: Factors | None) -> tuple[Floats | None, tuple[int, ...]]:
    """Codes in the order of the grid, if the rows are every combination of the factors exactly once."""
    if factors is None or factors.continuous:
        return None, ()
    columns = tuple(column.astype(np.int64) for column in factors.columns)
    sizes = tuple(int(column.max()) + 1 for column in columns)
    if math.prod(sizes) != len(factors):
        return None, ()
    index = np.ravel_multi_index(columns, sizes)
    if len(np.unique(index)) < len(index):
        return None, ()
    ordered = np.empty_like(codes)
    ordered[index] = codes
    return ordered, sizes


def score_codes(path: Path, config: ScoreConfig) -> dict[str, Any]:
    """Score codes without a model and write <name>.scores.json beside them."""
    read = read_codes(path)
    scored = _scored(read, config)
    names, skipped = scores.choose(config.metrics, _unmet(read, path, has_grid=scored.grid_codes is not None))
    record = {
        "format": 1,
        "codes": path.name,
        "codes_sha256": read.sha256,
        "seed": config.seed,
        **made_with(),
        "protocol": {"dims": list(config.dims), "shuffles": config.shuffles, "resamples": config.resamples},
        "num_images": len(read.codes),
        "num_latents": read.codes.shape[1],
        "code": scored.code_name,
        "factor_names": [] if read.factors is None else list(read.factors.names),
        "ignored_columns": list(read.ignored),
        "scores": scores.compute(names, scored, announce, skipped if config.metrics is None else None),
        "skipped": skipped,
        "untrained": None,
    }
    files.write_json(config.record_path, record)
    return record


def _scored(read: CodesFile, config: ScoreConfig) -> scores.Scored:
    grid, sizes = grid_of(read.codes, read.factors)
    num_latents = read.codes.shape[1]
    return scores.Scored(
        codes=read.codes,
        code_name="as given",
        code_factors=read.factors,
        variances=read.variances,
        groups=[read.codes],
        units=[read.codes[:, d : d + 1] for d in range(num_latents)],
        resolution=[1] * num_latents,
        factors=None if read.factors is None else metrics.quantile_classes(read.factors),
        grid_codes=grid,
        grid_sizes=sizes,
        **config.how,
    )


def _unmet(read: CodesFile, path: Path, *, has_grid: bool) -> dict[scores.Need, str]:
    """The needs of scores that the file does not meet."""
    unmet: dict[scores.Need, str] = {}
    if read.factors is None:
        unmet["factors"] = f"{path} holds no factors; add the key 'factors' to the npz, or columns to the table"
    elif read.factors.continuous:
        continuous = [read.factors.names[k] for k in read.factors.continuous[:8]]
        unmet["classes"] = (
            f"needs classes, and these factors are continuous: {', '.join(continuous)}; "
            "choose mcc, linear_r2, cca, infomec or sap_r2"
        )
    if not has_grid:
        unmet["grid"] = "needs a code of every combination of the factors; choose factor_vae_rows"
    if read.variances is None:
        unmet["variances"] = "the file has no posterior variances; add them"
    if read.codes.shape[1] > MOST_UNITS:
        unmet["few units"] = (
            f"probes {read.codes.shape[1]} latents one by one and together; request it with --metrics groups"
        )
    return unmet
