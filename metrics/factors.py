"""Factors beside codes: classes, numbers or text, column by column.

A column of whole numbers, booleans or text holds classes, which are relabelled 0, 1, 2, ... in ascending order: labels
that start at 1, have gaps or are words score as dense ones do. A column with fractions is continuous. Scores of classes
cut continuous factors into quantile bins or refuse them, and name the scores that take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from metrics.arrays import Array, Float64, Floats, Int64, as_codes, check_count, same_rows, tamed, to_numpy, usual_scale

Column: TypeAlias = Int64 | Float64
Table: TypeAlias = "Factors | Array | Mapping[str, Array]"
"""Factors as a user may give them: [N, K], or a mapping of names to columns (a pandas frame is one)."""

TAKE_NUMBERS = "linear_r2, mlp_r2, mcc, cca, infomec, sap(kind='r2') or dci(regressor='lasso')"
QUANTILE_BINS = 20


@dataclass(frozen=True, eq=False)
class Factors:
    """Checked factors.

    Args:
        columns: K arrays [N], int64 classes from 0 without gaps, or float64 numbers.
        names: K names, by default "0", "1", ...
    """

    columns: tuple[Column, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return len(self), len(self.columns)

    @property
    def continuous(self) -> tuple[int, ...]:
        """Columns that hold numbers, not classes."""
        return tuple(k for k, column in enumerate(self.columns) if column.dtype.kind == "f")

    def rows(self, index: npt.NDArray[Any] | slice) -> Factors:
        """Some of the rows, with the same classes."""
        return Factors(tuple(column[index] for column in self.columns), self.names)


def as_table(factors: Table, name: str = "factors") -> Factors:
    """Read factors [N, K], or a mapping of names to columns.

    Raises:
        ValueError: a wrong shape, missing values, negative class labels, or a type that is neither number nor text.
    """
    if isinstance(factors, Factors):
        return factors
    if _is_named(factors):
        named: Any = factors
        names, columns = tuple(str(key) for key in named), [to_numpy(named[key]) for key in named]
        shape: tuple[int, ...] = (len(columns[0]) if columns and columns[0].ndim else 0, len(columns))
        if any(column.shape != shape[:1] for column in columns):
            raise ValueError(f"{name} have columns of shapes {[c.shape for c in columns]}; give one length [N] to all")
    else:
        array = to_numpy(factors)  # type: ignore[arg-type]
        shape = array.shape
        columns = list(np.ascontiguousarray(array.T)) if array.ndim == 2 else []
        names = tuple(str(k) for k in range(len(columns)))
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} have shape {shape}; give [N, K] with at least one point and one factor")
    return Factors(tuple(_column(c, f"{name} {shape}", n) for c, n in zip(columns, names, strict=True)), names)


def _is_named(factors: Table) -> bool:
    """True if columns have names, as in a mapping or a data frame."""
    return isinstance(factors, Mapping) or (hasattr(factors, "columns") and hasattr(factors, "keys"))


def _column(column: npt.NDArray[Any], table: str, name: str) -> Column:
    """One factor [N] as dense classes or as numbers."""
    if column.dtype.kind in "OUST":
        return _text_column(column.astype(str), table, name)
    if column.dtype.kind not in "fiub":
        raise ValueError(f"{table} have dtype {column.dtype} in factor {name}; give whole numbers, fractions or text")
    if column.dtype.kind == "f":
        bad = column.size - int(np.count_nonzero(np.isfinite(column)))
        if bad:
            raise ValueError(
                f"{table} hold {bad} values in factor {name} that are NaN or infinite; "
                "leave out these rows: classes are whole numbers, continuous factors finite ones"
            )
        with np.errstate(invalid="ignore"):
            whole = column.astype(np.int64)
        if not np.array_equal(whole, column):
            return column.astype(np.float64)
        column = whole
    if column.dtype.kind in "iu" and int(column.min()) < 0:
        raise ValueError(
            f"{table} hold the negative value {int(column.min())} in factor {name}; give class indices from 0, and "
            "leave out rows that it marks as missing"
        )
    return dense(column.astype(np.int64, copy=False))[1]


def _text_column(column: npt.NDArray[np.str_], table: str, name: str) -> Column:
    if (np.char.strip(column) == "").any() or np.isin(column, ("None", "nan", "NaN")).any():
        raise ValueError(f"{table} hold empty cells in factor {name}; leave out the rows without a value")
    try:
        numbers = column.astype(np.float64)
    except ValueError:  # words
        return np.unique(column, return_inverse=True)[1].astype(np.int64)
    return _column(numbers, table, name)


def dense(column: Int64) -> tuple[Int64, Int64]:
    """(values that occur [n], class of each point [N] in 0..n-1): linear for class indices, by sorting for huge values."""
    if int(column.max()) > 16 * len(column) + 1024:
        values, labels = np.unique(column, return_inverse=True)
        return values, labels.astype(np.int64)
    occurs = np.bincount(column) > 0
    if occurs.all():
        return np.arange(len(occurs)), column
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[column]


def as_classes(factors: Table, name: str = "factors") -> Int64:
    """Factors of classes alone as int64 [N, K], relabelled from 0 without gaps. Raises ValueError as the scores do."""
    table = as_table(factors, name)
    refuse_continuous(table)
    return np.stack(table.columns, axis=1)


def refuse_continuous(table: Factors) -> None:
    """Raise ValueError if factors are continuous; the message names the scores that take them."""
    if table.continuous:
        names = ", ".join(table.names[k] for k in table.continuous[:8])
        raise ValueError(
            f"factors {names} hold fractions, and this score needs classes as whole numbers; use {TAKE_NUMBERS}, "
            "or cut them into classes with metrics.quantile_classes(factors)"
        )


def quantile_classes(factors: Table, *, bins: int = QUANTILE_BINS) -> Int64:
    """Factors [N, K] with each continuous column cut into ``bins`` classes of nearly equal count; classes stay."""
    check_count(bins, "bins", 2)
    table = as_table(factors)
    classes = [_cut(c.astype(np.float64), bins) if c.dtype.kind == "f" else c for c in table.columns]
    return np.stack(classes, axis=1).astype(np.int64, copy=False)


def _cut(values: Float64, bins: int) -> Int64:
    """Quantile bin of each value; equal values share a bin, and empty bins are left out."""
    edges = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
    return dense(np.searchsorted(edges, values, side="left").astype(np.int64))[1]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Checked codes and factors of the same rows, without factors of one value.

    Args:
        codes: [N, D]; latents of extreme scale divided by 2^``exponents`` [D].
        table: the K' factors that vary; ``kept`` are their columns among those given.
    """

    codes: Floats
    exponents: Int64
    table: Factors
    kept: tuple[int, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def variance(self) -> Float64:
        """Variance of each latent [D] on the scale that was given."""
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.ldexp(np.var(self.codes, axis=0, dtype=np.float64), 2 * self.exponents))

    @cached_property
    def classes(self) -> Int64:
        """Factors [N, K'] as classes. Raises ValueError for continuous ones."""
        refuse_continuous(self.table)
        return np.stack(self.table.columns, axis=1)

    @cached_property
    def values(self) -> Float64:
        """Factors [N, K'] as numbers: class indices and continuous values."""
        return np.stack([column.astype(np.float64) for column in self.table.columns], axis=1)

    def columns_of_classes(self, bins: int) -> tuple[list[Int64], tuple[str, ...]]:
        """:meth:`binned` column by column, without a copy of factors that are classes."""
        classes, notes = self.binned(bins) if self.table.continuous else (None, ())
        columns = self.table.columns if classes is None else tuple(classes.T)
        return [column.astype(np.int64, copy=False) for column in columns], notes

    def binned(self, bins: int) -> tuple[Int64, tuple[str, ...]]:
        """Factors [N, K'] as classes, continuous ones after quantile bins, and a note that says so."""
        if not self.table.continuous:
            return self.classes, ()
        which = [self.kept[k] for k in self.table.continuous]
        notes = (f"continuous factors {which} were cut into {bins} quantile bins",)
        return quantile_classes(self.table, bins=bins), notes


def paired(codes: Array, factors: Table, name: str = "", *, any_scale: bool = True) -> Pairs:
    """Check codes [N, D] and factors [N, K] together; factors of one value are dropped with a note.

    Args:
        codes: finite numbers.
        factors: classes, numbers or text.
        name: put before both names in messages, such as "test_".
        any_scale: the score does not depend on the scale of latents, so that extreme ones may be rescaled.
    """
    array, table = as_codes(codes, f"{name}codes"), as_table(factors, f"{name}factors")
    same_rows(array.shape, table.shape, f"{name}codes and {name}factors")
    array, exponents = (
        tamed(array) if any_scale else (usual_scale(array, f"{name}codes"), np.zeros(array.shape[1], int))
    )
    varying = [column.min() != column.max() for column in table.columns]
    kept = tuple(k for k, varies in enumerate(varying) if varies)
    if not kept:
        raise ValueError(f"no factor of {table.shape} takes two values; there is nothing that a code could encode")
    return Pairs(array, exponents, _choose(table, kept), kept, _dropped_note(varying))


def _choose(table: Factors, kept: tuple[int, ...]) -> Factors:
    return Factors(tuple(table.columns[k] for k in kept), tuple(table.names[k] for k in kept))


def _dropped_note(varying: list[bool]) -> tuple[str, ...]:
    dropped = [k for k, varies in enumerate(varying) if not varies]
    return (f"factors {dropped} take one value only and were dropped",) if dropped else ()


def paired_split(
    codes: Array, factors: Table, test_codes: Array, test_factors: Table, *, any_scale: bool = True
) -> tuple[Pairs, Pairs]:
    """Train and test rows with the same latents, factors and classes.

    Both are read as one table, so that a label means the same class in both. Factors with one value in train are
    dropped from both.
    """
    arrays = as_codes(codes, "codes"), as_codes(test_codes, "test_codes")
    tables = as_table(factors, "factors"), as_table(test_factors, "test_factors")
    same_rows(arrays[0].shape, tables[0].shape, "codes and factors")
    same_rows(arrays[1].shape, tables[1].shape, "test_codes and test_factors")
    if arrays[0].shape[1] != arrays[1].shape[1] or tables[0].shape[1] != tables[1].shape[1]:
        raise ValueError(
            f"test_codes {arrays[1].shape} and test_factors {tables[1].shape} do not match codes "
            f"{arrays[0].shape} and factors {tables[0].shape}; give the same columns in both"
        )
    both = _joined(factors, test_factors, tables)
    num_train = len(arrays[0])
    whole = paired(np.concatenate(arrays), both, any_scale=any_scale)
    first = whole.table.rows(slice(num_train))
    varying = [column.min() != column.max() for column in first.columns]
    if not any(varying):
        raise ValueError(f"no factor of {tables[0].shape} takes two values; there is nothing that a code could encode")
    inside = tuple(k for k, varies in enumerate(varying) if varies)
    kept = tuple(whole.kept[k] for k in inside)
    notes = _dropped_note([k in kept for k in range(tables[0].shape[1])])
    return tuple(  # type: ignore[return-value]
        Pairs(whole.codes[part], whole.exponents, _choose(whole.table, inside).rows(part), kept, notes)
        for part in (slice(num_train), slice(num_train, None))
    )


def _joined(factors: Table, test_factors: Table, tables: tuple[Factors, Factors]) -> Table:
    """Both tables under one another, as they were given, so that equal labels become equal classes."""
    if isinstance(factors, Factors) or isinstance(test_factors, Factors):
        if not (isinstance(factors, Factors) and isinstance(test_factors, Factors)):
            raise ValueError("one of factors and test_factors was checked and one not; give both in the same form")
        pairs = zip(tables[0].columns, tables[1].columns, strict=True)
        return Factors(tuple(np.concatenate(pair) for pair in pairs), tables[0].names)  # type: ignore[misc]
    if _is_named(factors):
        named: Any = (factors, test_factors)
        return {str(key): np.concatenate([to_numpy(part[key]) for part in named]) for key in named[0]}
    plain: Any = (factors, test_factors)
    return np.concatenate([to_numpy(part) for part in plain])


def few_points_note(num_points: int, bins: int, num_classes: int = 1) -> tuple[str, ...]:
    """A note if a histogram of ``bins`` x ``num_classes`` cells holds too few points to mean much."""
    if num_points < bins:
        return (f"{num_points} points are fewer than the {bins} bins: the information is biased upwards",)
    if num_points >= bins * num_classes:
        return ()
    bias = (bins - 1) * (num_classes - 1) / (2 * num_points)
    return (
        f"{num_points} points for {bins} bins x {num_classes} classes: information is biased upwards by up to "
        f"{bias:.2g} nats (Miller-Madow); look at the chance level",
    )
