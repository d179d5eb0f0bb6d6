"""Means, spreads and tables of the studies' reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Mean of a few seeds and the sample standard deviation over them (ddof 1; None for one seed)."""

    mean: float
    std: float | None
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of the values of several seeds, at least one."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, len(values))

    @property
    def standard_error(self) -> float:
        """Of the mean; 0 where one seed says nothing about it."""
        return 0.0 if self.std is None else self.std / float(np.sqrt(self.num))

    def text(self, digits: int = 2) -> str:
        """'mean +- spread'."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.std is None else f"{mean} ± {self.std:.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, columns aligned so that it reads as plain text too."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
