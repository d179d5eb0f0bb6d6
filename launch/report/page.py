"""A report as blocks, and blocks as one self-contained HTML page or as Markdown: the only place that knows mark-up."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import TypeAlias

from launch.report.figures import Drawing

WORDS = ' class="words"'
MOST_ROWS = 20  # of a table before the rest is folded away


@dataclass(frozen=True)
class Heading:
    """A title of level 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph of plain words."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """Short statements."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first column names the row, the others are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False
    wordy: frozenset[int] = frozenset()
    """Columns that hold words: aligned to the left, and wrapped."""


@dataclass(frozen=True)
class Figure:
    """A figure with what it shows and what it does not."""

    name: str
    title: str
    drawing: Drawing
    text: str


Block: TypeAlias = Heading | Text | Bullets | Table | Figure

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>$title</title>
<style>
:root { --ink: #1c1e21; --soft: #5c6370; --page: #ffffff; --line: #d9dce1; --band: #f4f5f7; --link: #2a5db0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #a0a7b4; --page: #16181c; --line: #363b44; --band: #1f2329; --link: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: var(--ink); background: var(--page);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.8rem 0 .3rem; font-size: 1.05rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
.caption { color: var(--soft); margin: 1.2rem 0 .2rem; font-size: .92rem; } .wide { margin-top: .2rem; }
td.words, th.words { text-align: left; white-space: normal; min-width: 13rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; }
thead th { background: var(--band); font-weight: 600; white-space: normal; }
figure { margin: .6rem 0 1.4rem; } figure svg, figure img { display: block; width: 100%; height: auto; }
figure img { max-width: 46rem; image-rendering: pixelated; background: #fff; padding: 4px; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .5rem; }
summary { cursor: pointer; color: var(--link); }
</style></head><body>
$body
</body></html>
""")


def _cells(row: Sequence[str], tag: str, wordy: frozenset[int]) -> str:
    return "".join(f"<{tag}{WORDS if i in wordy else ''}>{html.escape(cell)}</{tag}>" for i, cell in enumerate(row))


def _html_rows(table: Table, rows: Sequence[Sequence[str]]) -> str:
    head = f"<thead><tr>{_cells(table.head, 'th', table.wordy)}</tr></thead>"
    body = "".join(f"<tr>{_cells(row, 'td', table.wordy)}</tr>" for row in rows)
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _html_table(table: Table) -> str:
    caption = html.escape(table.caption)
    if table.folded:
        return (
            f"<details><summary>{caption} ({len(table.rows)} rows)</summary>{_html_rows(table, table.rows)}</details>"
        )
    text = f'<p class="caption">{caption}</p>' + _html_rows(table, table.rows[:MOST_ROWS])
    rest = table.rows[MOST_ROWS:]
    return text + (
        f"<details><summary>{len(rest)} more rows</summary>{_html_rows(table, rest)}</details>" if rest else ""
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case Table():
            return _html_table(block)
        case Figure(_, title, drawing, text):
            titled = drawing.markup.replace('alt=""', f'alt="{html.escape(title)}"', 1)
            titled = titled.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
            return f"<h3>{html.escape(title)}</h3><figure>{titled}<figcaption>{html.escape(text)}</figcaption></figure>"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One page with everything in it: no script, no request."""
    return _PAGE.substitute(title=html.escape(title), body="\n".join(_html(block) for block in blocks))


def _escape(text: str) -> str:
    """What Markdown would read as mark-up; a cell must not end early either."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escape(text)}"
        case Text(text):
            return _escape(text)
        case Bullets(items):
            return "\n".join(f"- {_escape(item)}" for item in items)
        case Table(head, rows, caption):
            lines = [f"{_escape(caption)}\n"] if caption else []
            lines += [" | ".join(["", *map(_escape, head), ""]).strip()]
            lines += ["|" + "|".join([" :--- ", *[" ---: "] * (len(head) - 1)]) + "|"]
            lines += [" | ".join(["", *map(_escape, row), ""]).strip() for row in rows]
            return "\n".join(lines)
        case Figure(name, title, _, text):
            return f"### {_escape(title)}\n\n![{_escape(title)}](figures/{name}.png)\n\n{_escape(text)}"


def to_markdown(blocks: Sequence[Block]) -> str:
    """The same with figures as files ``figures/<name>.png``."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"
