"""The blocks of a report as text, Markdown and HTML, and the tables that score.py and evaluate.py print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import jinja2

from launch.console.terminal import one_line
from launch.machine import files
from launch.results.scores import METRICS, headline
from metrics.measure import Measure
from metrics.uncertainty import FEW_ROWS, few_rows_note

if TYPE_CHECKING:
    from launch.report.figures import Drawing

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
    """A figure with its title, and an explanation of what it shows and what it does not."""

    name: str  # of its file, without the ending
    title: str
    drawing: Drawing
    text: str
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first column names the row, the others hold numbers and are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""  # above the table
    folded: bool = False  # show only the caption on a page until a reader opens the table
    wordy: frozenset[int] = frozenset()  # columns after the first that hold words, aligned to the left
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


def with_interval(value: float, uncertainty: Mapping[str, Any]) -> str:
    """Format a score with its interval, or the spread over halves of the rows, and its chance level for a table."""
    if uncertainty["interval"] is None:
        beside = f"(no interval; std of halves {uncertainty['halves_std']:.3f})"
    else:
        low, high = uncertainty["interval"]
        beside = f"[{low:.3f}, {high:.3f}]"
    return f"{value:.3f} {beside}, {uncertainty['chance']:.3f}"


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


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Format a report as one self-contained HTML page without scripts, dark if the reader's system is.

    The table of contents follows the introduction.
    """
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(title=title, blocks=blocks, most_rows=MOST_ROWS)


# --- Printed by score.py ----------------------------------------------------------------------------------------------


def _scores(results: Mapping[str, Any], skipped: Mapping[str, str]) -> Table:
    """List each score with its 95 % interval, its chance level, its ceiling and its meaning."""
    rows = []
    for name, result in results.items():
        value, found, notes = headline(result), result.get("uncertainty"), list(result.get("notes", ()))
        shown = f"{value:.4f}" if value is not None else str(result.get("score"))
        beside = next((f"{k} {result[k]:.4f}" for k in ("ceiling", "baseline") if isinstance(result.get(k), float)), "")
        interval = chance = ""
        if found:
            interval = "none" if found["interval"] is None else "[{:.4f}, {:.4f}]".format(*found["interval"])
            chance = f"{found['chance']:.4f}"
            if found["interval"] is None or abs(found["bias"]) > found["standard_error"]:
                notes.insert(0, found["bias_note"])
        rows.append([name, shown, interval, chance, beside, METRICS[name].says])
        rows += [["", "", "", "", "", f"note: {note}"] for note in notes]
    rows += [[name, "-", "", "", "", f"left out: {reason}"] for name, reason in skipped.items()]
    return Table(["score", "value", "95 % interval", "by chance", "", "meaning"], rows, wordy=frozenset({4, 5}))


def _groups(result: Mapping[str, Any], factor_names: Sequence[str], labels: Sequence[str]) -> Table:
    """List the information of each group about each factor and, in brackets, its gain, as shares of H(v)."""
    names = [factor_names[k][:16] if factor_names else f"factor {k}" for k in result["kept"]]
    rows = []
    for label, alone, gain in zip(labels, result["matrix"], result["conditional_gain"], strict=True):
        of_factors = zip(alone, gain, result["entropy"], strict=True)
        rows.append([label, *(f"{a / h:.3f} ({g / h:.3f})" if h else "-" for a, g, h in of_factors)])
    caption = "Share of each factor's entropy that a group encodes (in brackets: what it adds to the groups above)"
    if result["threshold"] is not None:
        caption += f"; by chance a gain reaches {result['threshold']:.4f} nats ({result['num_shuffles']} shuffles)"
    return Table(["", *names], rows, caption)


def _reduced(result: Mapping[str, Any]) -> Table:
    """List the MIG of each reduction at each dimension; a star marks codes with fewer dimensions than requested."""
    found = result["rows"]
    every = sorted({row["dim"] for row in found})
    dims = [d for d in every if any(row["num_latents"] >= d == row["dim"] for row in found)] or every[:1]
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in found):
        of_kind = {row["dim"]: row for row in found if row["kind"] == kind}
        cells = [f"{of_kind[d]['mig']:.4f}{'*' if of_kind[d]['num_latents'] < d else ' '}" for d in dims]
        rows.append([kind, *cells])
    caption = "MIG at equal dimension (* the code is smaller: compare only values without a star)"
    return Table(["reduction", *(f"d = {d}" for d in dims)], rows, caption)


def _precision(results: Mapping[str, Any]) -> Table:
    """List the share of images within given distances in pixels of a real image, for samples and for baselines."""
    first = next(iter(results.values()))
    rows = [
        [name, *(f"{share:.3f}" for share in result["precision"]), f"{result['num_samples']:,}"]
        for name, result in results.items()
    ]
    head = ["images", *(f"{distance} px" for distance in first["distances"]), "number"]
    return Table(head, rows, "Share of images that differ from some real image in at most this number of pixels")


def _coverage(results: Mapping[str, Any], factor_names: Sequence[str]) -> Table:
    """List the share of each factor's values that images cover."""
    within = next(iter(results.values()))["within"]
    rows = [[name, *(f"{share:.3f}" for share in result["coverage"])] for name, result in results.items()]
    head = ["images", *(name[:14] for name in factor_names)]
    return Table(head, rows, f"Share of each factor's values covered by images within {within} px of a real image")


def _unit_labels(record: dict[str, Any]) -> list[str]:
    """Name each row of the group table."""
    shapes, count = record.get("group_shapes", []), len(record["scores"]["groups"]["matrix"])
    if len(shapes) == count and count > 1:
        return [f"group {i} ({h}x{w})" for i, (_, h, w) in enumerate(shapes)]
    return [f"latent {i}" for i in range(count)]


def _parts(record: dict[str, Any], has_rate: bool) -> Iterator[str]:
    found = record["scores"]
    yield f"code: {one_line(record['code'])}; {record['num_images']:,} images"
    if record.get("ignored_columns"):
        names = ", ".join(one_line(name) or "(no name)" for name in record["ignored_columns"])
        yield f"columns left out because they only number or name the rows: {names}"
    if any((result.get("uncertainty") or {}).get("interval") for result in found.values()):
        yield from few_rows_note(record["num_images"])
    elif record["num_images"] < FEW_ROWS:
        yield f"note: {record['num_images']} images are few for scores; give {FEW_ROWS} or more, of a run with --split all"
    yield _scores(found, record["skipped"]).text()
    if record["untrained"]:
        fresh = {name: headline(result) for name, result in record["untrained"].items()}
        yield "untrained weights: " + "  ".join(f"{name} {v:.4f}" for name, v in fresh.items() if v is not None)
    if "reduced" in found:
        yield _reduced(found["reduced"]).text()
    if "groups" in found:
        yield _groups(found["groups"], record["factor_names"], _unit_labels(record)).text()
    if record.get("samples"):
        yield _precision(record["samples"]).text()
        yield _coverage(record["samples"], record["factor_names"]).text()
    if "kl_at_means" in record and has_rate:
        shown = " ".join(f"{value:.2f}" for value in record["kl_at_means"])
        yield (
            f"KL per group at the posterior means, before any flow, in nats, top first: {shown}; "
            f"active units {record['active_units']}"
        )


def describe(record: dict[str, Any], *, has_rate: bool = True) -> str:
    """Format a record of scores as tables; ``has_rate`` is False for an autoencoder, whose KL means nothing."""
    return "\n\n".join(_parts(record, has_rate))


def describe_folders(record: Mapping[str, Any]) -> str:
    """Format FID, KID, precision and recall of a folder of images as a table."""
    found = record["scores"]["images"]
    kernel, near = found["kernel"], found["neighbours"]
    rows = [
        ["FID", f"{found['score']:.4f}", "", "lower is better"],
        ["KID", f"{kernel['score']:.5f}", f"+- {kernel['standard_deviation']:.5f}", "over subsets; lower is better"],
    ]
    rows += [[n, f"{near[n]:.4f}", "", ""] for n in ("precision", "recall", "density", "coverage")] if near else []
    rows += [["", "", "", f"note: {note}"] for note in found["notes"]]
    compared = f"{record['generated']['num_images']:,} images against {record['reference']['num_images']:,}"
    return f"{compared}\n{Table(['score', 'value', '', 'meaning'], rows, wordy=frozenset({2, 3})).text()}"


# --- Printed by evaluate.py -------------------------------------------------------------------------------------------


def _further_bounds(result: dict[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Yield the importance bound, and the results under the other treatment of edge bins of a discretised mixture."""
    importance = f"importance bound, {result.get('importance_draws')} samples"
    if "importance_bound" in result:
        yield importance, -result["importance_bound"], "importance_bits_per_dim"
    for edges in ("exact", "legacy"):
        if f"{edges}_elbo" in result:
            yield f"negative ELBO, {edges} edges", -result[f"{edges}_elbo"], f"{edges}_bits_per_dim"
        if f"{edges}_importance_bound" in result:
            bound = -result[f"{edges}_importance_bound"]
            yield f"{importance}, {edges} edges", bound, f"{edges}_importance_bits_per_dim"


def _bounds(result: dict[str, Any], reference: dict[str, float] | None, measure: Measure) -> Table:
    """List the negative ELBO, its parts and tighter bounds in nats per image and in the measure's unit."""
    unit = "nats per image" + ("" if measure.is_probability else f", of a {measure.of}")
    half = measure.per_dim(result["bits_per_dim_95"])
    rows = [
        [
            "negative ELBO",
            f"{-result['elbo']:.2f} ± {result['elbo_95']:.2f}",
            f"{measure.per_dim(result['bits_per_dim']):.4f} ± {half:.4f}",
        ],
        ["  rate (KL)", f"{result['rate']:.2f}", ""],
        ["  distortion", f"{result['distortion']:.2f}", ""],
    ]
    rows += [[n, f"{nats:.2f}", f"{measure.per_dim(result[key]):.4f}"] for n, nats, key in _further_bounds(result)]
    if reference is not None:
        nats, bits = reference["negative_log_likelihood"], reference["bits_per_dim"]
        rows.append(["no latents (baseline)", f"{nats:.2f}", f"{bits:.4f}"])
    return Table(["", unit, measure.unit], rows)


def evaluation(result: dict[str, Any], reference: dict[str, float] | None, measure: Measure) -> str:
    """Format an evaluation, with the numbers of the no-latents baseline ``reference``, as a table and some lines.

    Only numbers that ``measure`` shows are listed.
    """
    decibels = f"reconstruction: {result['psnr']:.2f} dB"
    if not measure.has_rate:
        distortion = f"distortion: {result['distortion']:.2f} {measure.nats} per image, at the posterior means"
        return f"{distortion}\n{decibels}\nAn autoencoder trains no posterior variance, so it has no rate, ELBO or bits/dim."
    lines = [
        _bounds(result, reference, measure).text(),
        decibels,
        f"active units: {result['active_units']} of {result['num_units']}",
        f"KL per group from one posterior sample, in nats, top first: {' '.join(f'{v:.1f}' for v in result['kl_group'])}",
    ]
    if measure.note:
        lines.append(f"{measure.note}.")
    return "\n".join(lines)
