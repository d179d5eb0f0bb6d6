"""Figures of a comparison: each is drawn once, as SVG for the page and as PNG for files and TensorBoard."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from launch.console.figures import Picture, entitle, rasterise, settle, subplots
from launch.report.runs import ScoredRun, clean
from launch.report.statistics import HEADLINE_KIND, Comparable, Configuration, Float64

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#222222"
COLOURS = ("#3b78c3", "#d1603d", "#3a9a5b", "#8a63c0", "#b8860b", "#c2508b", "#2a9aa5", "#7f7f7f")
MARKERS = "osD^vP"  # one for each model family
MOST_NAMED = len(COLOURS)  # configurations with a colour and a line in the legend
MOST_ROWS = 40  # groups with a line of their own in a heat map
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **{"svg.fonttype": "none", "font.size": 11, "legend.frameon": False, "font.family": "sans-serif"},
    "text.parse_math": False,  # no mathtext: names may hold a dollar sign
}


@dataclass(frozen=True)
class Drawing:
    """A figure."""

    source: str  # data URI for an HTML page
    picture: Picture  # pixels for files and TensorBoard
    is_pixels: bool = False  # a picture of images, whose pixels a page must not blur


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def from_picture(picture: Picture) -> Drawing:
    """Show images as they are."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return Drawing(_data_uri("png", buffer.getvalue()), picture, is_pixels=True)


def draw(build: Callable[[], Figure], name: str, title: str) -> Drawing:
    """Draw a figure below its title; equal data and ``name`` give equal bytes."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, svg = build(), io.BytesIO()
        entitle(figure, title)
        extent = settle(figure)
        figure.savefig(svg, format="svg", bbox_inches=extent, metadata={"Date": None})
        return Drawing(_data_uri("svg+xml", svg.getvalue()), rasterise(figure, extent))


# --- Where the factors are ------------------------------------------------------------------------------------------


def _whose(configuration: Configuration) -> str:
    return f"{configuration.label} on {clean(configuration.first.saved.record['data']['name'])}"


def _width(table: Float64) -> float:
    """Width of a figure in inches that leaves room for a name under each column."""
    return max(6.4, 0.22 * len(table[0]))


def _name_columns(axes: Any, places: list[float], names: list[str]) -> None:
    axes.set_xticks(places, names, rotation=90 if len(names) > 8 else 0, fontsize=6 if len(names) > 20 else 10)


def _write_shares(axes: Any, share: Float64, top: float) -> None:
    for (row, column), value in np.ndenumerate(share):
        colour = "#ffffff" if value > 0.55 * top else INK
        axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)


def heat_map(configuration: Configuration) -> Drawing:
    """Draw groups x factors beside the KL of each group, which an autoencoder does not have."""
    share, kl, run = configuration.shares("matrix"), configuration.kl_of_units(), configuration.first
    labels, top = run.unit_names, max(0.2, float(share.max()))

    def build() -> Figure:
        height = max(2.2, 0.34 * min(len(share), MOST_ROWS) + 1.2)
        figure, (left, right) = subplots(
            1, 2, size=(_width(share), height), sharey=True, width_ratios=(3, 1.2), layout="constrained"
        )
        shades = left.pcolormesh(share, cmap="Blues", vmin=0.0, vmax=top, edgecolors="none")
        if share.size <= 160 and share.shape[1] <= 10:
            _write_shares(left, share, top)
        else:
            figure.colorbar(shades, ax=left, fraction=0.03, pad=0.01)
        shown = range(len(labels)) if len(labels) <= MOST_ROWS else range(0, len(labels), len(labels) // 20)
        left.set_yticks([i + 0.5 for i in shown], [labels[i] for i in shown])
        _name_columns(left, [i + 0.5 for i in range(share.shape[1])], run.factor_names)
        left.invert_yaxis()
        left.set_ylabel("group, top first" if run.unit == "group" else "latent")
        left.set_title("share of H(factor)", fontsize=11)
        if run.measure.has_rate:
            right.barh([i + 0.5 for i in range(len(kl))], kl, color=COLOURS[0])
            right.set_title("KL, nats", fontsize=11)
            right.spines[["top", "right"]].set_visible(False)
        else:
            right.set_axis_off()
        return figure

    return draw(
        build, f"heat{configuration.label}", f"{_whose(configuration)}: what each {run.unit} encodes about the factors"
    )


def gains(configuration: Configuration) -> Drawing:
    """Draw what each group adds about each factor to the groups above it, stacked."""
    gain, run = configuration.shares("conditional_gain"), configuration.first

    def build() -> Figure:
        figure, axes = subplots(size=(_width(gain), 3.2), layout="constrained")
        places, bottom = [float(i) for i in range(gain.shape[1])], np.zeros(gain.shape[1])
        palette = matplotlib.colormaps["viridis"](np.linspace(0.25, 0.95, len(gain)))
        for row, (label, colour) in enumerate(zip(run.unit_names, palette, strict=True)):
            axes.bar(places, gain[row], bottom=bottom, color=colour, label=label, width=0.7)
            bottom = bottom + gain[row]
        _name_columns(axes, places, run.factor_names)
        axes.set_ylabel("share of H(factor)")
        axes.set_ylim(0, max(0.1, 1.1 * float(bottom.max())))
        axes.spines[["top", "right"]].set_visible(False)
        if len(gain) <= 12:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, title=run.unit)
        return figure

    return draw(
        build, f"gain{configuration.label}", f"{_whose(configuration)}: what each {run.unit} adds to those above it"
    )


# --- All configurations ---------------------------------------------------------------------------------------------


def _identity(compared: Comparable, index: int) -> tuple[str, str | None]:
    """Colour of a configuration and its line in the legend; configurations beyond the colours share the last one."""
    rest = len(compared.configurations) - MOST_NAMED + 1
    if index < MOST_NAMED - 1 or rest <= 1:
        return COLOURS[index], clean(compared.configurations[index].label)
    return COLOURS[-1], f"{rest} other configurations" if index == MOST_NAMED - 1 else None


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, fontsize=9)


def _dimension_line(axes: Any, values: dict[int, Float64], colour: str, **style: Any) -> None:
    reached = [d for d in values if len(values[d])]
    if not reached:
        return
    axes.plot(reached, [values[d].mean() for d in reached], color=colour, **style)
    for d in reached:
        axes.scatter([d] * len(values[d]), values[d], color=colour, s=14, alpha=0.9 if "label" in style else 0.4)


def mig_against_dimension(compared: Comparable) -> Drawing:
    """Draw MIG of the headline reduction at each dimension: lines join means, points are seeds, untrained is dotted."""
    dims = compared.dims

    def build() -> Figure:
        figure, axes = subplots(size=(6.4, 4.0), layout="constrained")
        for index, configuration in enumerate(compared.configurations):
            colour, name = _identity(compared, index)
            trained, fresh = (
                {d: configuration.reduced(HEADLINE_KIND, d, untrained=untrained) for d in dims}
                for untrained in (False, True)
            )
            _dimension_line(axes, trained, colour, label=name)
            _dimension_line(axes, fresh, colour, linestyle=":", alpha=0.7)
        axes.set_xscale("log")
        axes.set_xticks(dims, [str(d) for d in dims])
        axes.minorticks_off()
        axes.set_xlabel("dimension of the reduced code")
        axes.set_ylabel(f"MIG ({HEADLINE_KIND})")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        _legend(figure, axes)
        return figure

    return draw(build, "dimension", f"MIG at equal code size on {compared.terms['data']} (dotted: untrained weights)")


def _interval_lines(axes: Any, run: ScoredRun, names: list[str], offset: float, colour: str, label: str | None) -> None:
    """Draw the scores of a run as points with their intervals, if they have one, and their chance levels as bars."""
    for name, (value, found) in run.uncertain.items():
        place = names.index(name) + offset
        if found["interval"] is not None:
            axes.plot(found["interval"], [place, place], color=colour, linewidth=2.0, solid_capstyle="butt")
        axes.scatter([value], [place], color=colour, s=18, zorder=3, label=label)
        axes.plot([found["chance"]], [place], marker="|", color=INK, markersize=7, markeredgewidth=1.4, alpha=0.7)
        label = None  # one line in the legend


def intervals(compared: Comparable) -> Drawing:
    """Draw the scores of each configuration's first run with intervals over images and chance levels."""
    names, shown = compared.uncertain, compared.configurations[:MOST_NAMED]

    def build() -> Figure:
        height = 1.4 + len(names) * max(0.3, 0.13 * len(shown))
        figure, axes = subplots(size=(6.4, height), layout="constrained")
        for index, configuration in enumerate(shown):
            offset = 0.7 * ((index + 0.5) / len(shown) - 0.5)
            _interval_lines(axes, configuration.first, names, offset, COLOURS[index], clean(configuration.label))
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("score, 95 % interval over images; bar: chance level")
        axes.spines[["top", "right"]].set_visible(False)
        _legend(figure, axes)
        return figure

    return draw(build, "intervals", f"Scores of codes on {compared.terms['data']}")


def _equal_elbo(axes: Any) -> None:
    """Draw lines of equal ELBO behind the points."""
    (low, high), (bottom, ceiling) = axes.get_xlim(), axes.get_ylim()
    for total in MaxNLocator(6).tick_values(low + bottom, high + ceiling):
        axes.plot([low, high], [total - low, total - high], color="#888888", linewidth=0.6, zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, ceiling)


def rate_distortion(compared: Comparable) -> Drawing:
    """Draw every run by its held-out rate and distortion, coloured by its MIG; a marker for each family."""
    dim, by_family = compared.headline_dim, dict[str, list[ScoredRun]]()
    for run in compared.runs:
        if run.held_out("rate") is not None and run.held_out("distortion") is not None:
            by_family.setdefault(run.saved.family.title, []).append(run)

    def build() -> Figure:
        figure, axes = subplots(size=(6.4, 4.2), layout="constrained")
        known = [v for run in compared.runs if (v := run.reduced(HEADLINE_KIND, dim)) is not None]
        drawn = None
        for index, (title, runs) in enumerate(by_family.items()):
            numbers = [(r.held_out("rate"), r.held_out("distortion"), r.reduced(HEADLINE_KIND, dim)) for r in runs]
            points = np.array(numbers, dtype=np.float64)  # None becomes NaN
            drawn = axes.scatter(
                *(points[:, 0], points[:, 1]),
                c=points[:, 2],
                vmin=0.0,
                vmax=max([0.05, *known]),
                cmap="plasma",
                plotnonfinite=True,
                marker=MARKERS[index % len(MARKERS)],
                s=60,
                edgecolors=INK,
                linewidths=0.6,
                label=title,
            )
        _equal_elbo(axes)
        axes.set_xlabel("rate, nats per image")
        axes.set_ylabel("distortion, nats per image")
        if drawn is not None and known:
            figure.colorbar(drawn, ax=axes, label=compared.headline)
        _legend(figure, axes)
        return figure

    return draw(
        build, "rate-distortion", f"Held-out rate and distortion on {compared.terms['data']} (grey: equal ELBO)"
    )
