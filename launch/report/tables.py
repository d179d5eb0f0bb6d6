"""The blocks of a report, in particular tables, and their output as plain text, Markdown and an HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import jinja2

from launch.console.terminal import one_line
from launch.machine import files

if TYPE_CHECKING:
    from launch.report.figures import Drawing

TEMPLATE = "report.html.j2"
MOST_ROWS = 20  # rows of a table on a page before the rest is folded


@dataclass(frozen=True)
class Heading:
    """A title of level 1 to 3."""

    text: str
    level: int = 2
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Text:
    """A paragraph of plain words."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Bullets:
    """Short statements."""

    items: Sequence[str]
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True)
class Figure:
    """A figure with an explanation of what it shows and what it does not.

    Args:
        name: name of its file, without the ending.
        title: title above it.
        drawing: the figure itself.
        text: explanation below it.
    """

    name: str
    title: str
    drawing: Drawing
    text: str
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first column names the row, the others hold numbers and are aligned to the right.

    Args:
        head: names of the columns.
        rows: cells.
        caption: description above the table.
        folded: show only the caption on a page until a reader opens the table.
        wordy: columns after the first that hold words, aligned to the left.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False
    wordy: frozenset[int] = frozenset()
    kind: ClassVar[str] = "table"

    def is_left(self, column: int) -> bool:
        """True if a column is aligned to the left."""
        return column == 0 or column in self.wordy

    def _aligned(self, cells: Sequence[Sequence[str]]) -> list[list[str]]:
        """Pad cells to the width of their column."""
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [
            [
                cell.ljust(width) if self.is_left(i) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            for row in cells
        ]

    def text(self) -> str:
        """Format for a terminal, in columns; nothing in a cell can control the terminal."""
        cells = [[one_line(cell) for cell in row] for row in (self.head, *self.rows)]
        lines = ["  ".join(row).rstrip() for row in self._aligned(cells)]
        return "\n".join([one_line(self.caption), *lines] if self.caption else lines)

    def markdown(self) -> str:
        """Format as a Markdown table, padded so that it reads as plain text too."""
        cells = self._aligned([[escape(cell) for cell in row] for row in (self.head, *self.rows)])
        widths = [len(cell) for cell in cells[0]]
        rule = "|".join(f" {'-' * w} " if self.is_left(i) else f" {'-' * (w - 1)}: " for i, w in enumerate(widths))
        lines = [f"| {' | '.join(row)} |" for row in cells]
        table = "\n".join([lines[0], f"|{rule}|", *lines[1:]])
        return f"{escape(self.caption)}\n\n{table}" if self.caption else table


Block: TypeAlias = Heading | Text | Bullets | Table | Figure


def number(value: float | None, digits: int = 3) -> str:
    """Format a number for a table; None becomes a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def with_interval(value: float, uncertainty: Mapping[str, Any], digits: int = 3) -> str:
    """Format a score with its interval, or the spread over halves of the rows, and its chance level for a table."""
    if uncertainty["interval"] is None:
        beside = f"(no interval; std of halves {uncertainty['halves_std']:.{digits}f})"
    else:
        low, high = uncertainty["interval"]
        beside = f"[{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f} {beside}, {uncertainty['chance']:.{digits}f}"


def escape(text: str) -> str:
    """Escape Markdown mark-up, line ends and control characters."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", one_line(text))


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {escape(text)}"
        case Text(text):
            return escape(text)
        case Bullets(items):
            return "\n".join(f"- {escape(item)}" for item in items)
        case Table():
            return block.markdown()
        case Figure(name, title, _, text):
            return f"#### {escape(title)}\n\n![{escape(title)}](figures/{name}.png)\n\n{escape(text)}"


def to_markdown(blocks: Sequence[Block]) -> str:
    """Format a report as Markdown; its figures are the files ``figures/<name>.png``."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def write_paragraphs(path: Path, paragraphs: Iterable[str]) -> Path:
    """Write paragraphs of Markdown to a file; return its path."""
    files.write_text(path, "\n\n".join(paragraphs) + "\n")
    return path


@cache
def _template() -> jinja2.Template:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(TEMPLATE)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Format a report as one self-contained HTML page without scripts, dark if the reader's system is.

    The table of contents follows the introduction.
    """
    return _template().render(title=title, blocks=blocks, most_rows=MOST_ROWS)
