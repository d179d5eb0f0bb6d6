"""Figures of a comparison, each as SVG that takes the page's ink and as PNG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator
from PIL import Image

from launch.console.figures import Picture, render
from launch.report.data import HEADLINE_KIND, Comparable, Configuration, Float64, ScoredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour until the SVG is on the page
COLOURS = ("#3b78c3", "#d1603d", "#3a9a5b", "#8a63c0", "#b8860b", "#c2508b", "#2a9aa5", "#7f7f7f")
MOST_NAMED = len(COLOURS)  # configurations with a colour and a line in the legend
MOST_ROWS = 40  # groups with a line of their own in a heat map


@dataclass(frozen=True)
class Drawing:
    """A figure: ``markup`` for the page, ``picture`` for files and TensorBoard."""

    markup: str
    picture: Picture


def from_picture(picture: Picture) -> Drawing:
    """Images as they are, inlined."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Drawing(f'<img alt="" src="data:image/png;base64,{data}">', picture)


def _style(ink: str, salt: str) -> Any:
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    fixed = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 11, "legend.frameon": False}
    return {**dict.fromkeys(names, ink), **fixed, "font.family": "sans-serif"}


def draw(build: Callable[[], Figure], name: str) -> Drawing:
    """Draw a figure once for the page, transparent and in its ink, and once for files."""
    with matplotlib.rc_context(_style(INK, name)):
        figure, text = build(), io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r'\1style="max-width:\2pt"', svg, count=1)
    svg = re.sub(
        r'\bid="(figure_|axes_|patch_|text_|line2d_|[Pp]olyC|QuadMesh_|matplotlib|xtick_|ytick_|legend_)[^"]*"', "", svg
    )
    with matplotlib.rc_context(_style("#222222", name)):
        return Drawing(svg, render(build()))


# --- Where the factors are ------------------------------------------------------------------------------------------


def unit_names(run: ScoredRun) -> list[str]:
    """Rows of the group table: groups with their resolution, or latents."""
    count = len(run.record["scores"]["groups"]["matrix"])
    if run.is_flat:
        return [f"z{i}" for i in range(count)]
    return [f"{i} ({h}x{w})" for i, (_, h, w) in enumerate(run.record["group_shapes"])]


def factor_names(run: ScoredRun) -> list[str]:
    """Of the columns of the group table."""
    names = run.record["factor_names"]
    return [names[k] if k < len(names) else f"factor {k}" for k in run.record["scores"]["groups"]["kept"]]


def mean_share(configuration: Configuration, key: str) -> Float64:
    """A group table as shares of each factor's entropy, mean over the seeds that have it in the same shape: [L, K]."""
    tables = [
        np.array(run.record["scores"]["groups"][key])
        / np.maximum(np.array(run.record["scores"]["groups"]["entropy"]), 1e-9)
        for run in configuration.runs
        if "groups" in run.record["scores"]
    ]
    alike = [table for table in tables if table.shape == tables[0].shape]
    return np.asarray(np.mean(alike, axis=0), dtype=np.float64)


def mean_kl(configuration: Configuration) -> Float64:
    """KL in nats of each row of the group table, given the means above, mean over seeds: [L]."""
    rows = [run.record["kl_of_units"] for run in configuration.runs if "kl_of_units" in run.record]
    return np.asarray(np.mean([row for row in rows if len(row) == len(rows[0])], axis=0), dtype=np.float64)


def _width(table: Float64) -> float:
    """Inches that leave room for a name under each column."""
    return max(6.4, 0.22 * len(table[0]))


def heat_map(configuration: Configuration) -> Drawing:
    """Groups x factors beside the KL of each group."""
    share, kl, run = mean_share(configuration, "matrix"), mean_kl(configuration), configuration.first
    labels = unit_names(run)

    def build() -> Figure:
        height = max(2.2, 0.34 * min(len(share), MOST_ROWS) + 1.2)
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(_width(share), height), sharey=True, width_ratios=(3, 1.2), layout="constrained"
        )
        shades = left.pcolormesh(share, cmap="Blues", vmin=0.0, vmax=max(0.2, float(share.max())), edgecolors="none")
        if share.size <= 160 and share.shape[1] <= 10:
            for (row, column), value in np.ndenumerate(share):
                dark = value > 0.55 * max(0.2, float(share.max()))
                left.text(
                    column + 0.5,
                    row + 0.5,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="#ffffff" if dark else "#222222",
                )
        else:
            figure.colorbar(shades, ax=left, fraction=0.03, pad=0.01)
        shown = range(len(labels)) if len(labels) <= MOST_ROWS else range(0, len(labels), len(labels) // 20)
        left.set_yticks([i + 0.5 for i in shown], [labels[i] for i in shown])
        names = factor_names(run)
        left.set_xticks(
            [i + 0.5 for i in range(len(names))],
            names,
            rotation=90 if len(names) > 8 else 0,
            fontsize=6 if len(names) > 20 else 10,
        )
        left.invert_yaxis()
        left.set_ylabel("latent" if run.is_flat else "group, top first")
        left.set_title("share of H(factor) known", fontsize=11)
        right.barh([i + 0.5 for i in range(len(kl))], kl, color=COLOURS[0])
        right.set_title("KL, nats", fontsize=11)
        right.spines[["top", "right"]].set_visible(False)
        return figure

    return draw(build, f"heat{configuration.label}")


def gains(configuration: Configuration) -> Drawing:
    """What each group adds about each factor to the groups above it, stacked."""
    gain, run = mean_share(configuration, "conditional_gain"), configuration.first

    def build() -> Figure:
        figure, axes = pyplot.subplots(figsize=(_width(gain), 3.2), layout="constrained")
        names, bottom = factor_names(run), np.zeros(gain.shape[1])
        palette = matplotlib.colormaps["viridis"](np.linspace(0.25, 0.95, len(gain)))
        for row, (label, colour) in enumerate(zip(unit_names(run), palette, strict=True)):
            axes.bar(range(len(names)), gain[row], bottom=bottom, color=colour, label=label, width=0.7)
            bottom = bottom + gain[row]
        axes.set_xticks(
            range(len(names)), names, rotation=90 if len(names) > 8 else 0, fontsize=6 if len(names) > 20 else 10
        )
        axes.set_ylabel("share of H(factor)")
        axes.set_ylim(0, max(0.1, 1.1 * float(bottom.max())))
        axes.spines[["top", "right"]].set_visible(False)
        if len(gain) <= 12:
            axes.legend(
                loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, title="latent" if run.is_flat else "group"
            )
        return figure

    return draw(build, f"gain{configuration.label}")


# --- All configurations ---------------------------------------------------------------------------------------------


def _colour(index: int) -> str:
    return COLOURS[index] if index < MOST_NAMED - 1 else COLOURS[-1]


def _name(index: int, label: str, total: int) -> str | None:
    if index < MOST_NAMED - 1 or total <= MOST_NAMED:
        return label
    return f"{total - MOST_NAMED + 1} other configurations" if index == MOST_NAMED - 1 else None


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, fontsize=9)


def mig_against_dimension(compared: Comparable, dims: list[int]) -> Drawing:
    """MIG of ``moments`` at each dimension: a line per configuration, a point per seed, untrained weights dashed."""

    def build() -> Figure:
        figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
        for index, configuration in enumerate(compared.configurations):
            colour = _colour(index)
            name = _name(index, configuration.label, len(compared.configurations))
            for untrained in (False, True):
                values = {d: configuration.reduced(HEADLINE_KIND, d, untrained=untrained) for d in dims}
                reached = [d for d in dims if len(values[d])]
                if not reached:
                    continue
                style: dict[str, Any] = {"linestyle": ":", "alpha": 0.7} if untrained else {"label": name}
                axes.plot(reached, [values[d].mean() for d in reached], color=colour, **style)
                for d in reached:
                    axes.scatter([d] * len(values[d]), values[d], color=colour, s=14, alpha=0.4 if untrained else 0.9)
        axes.set_xscale("log")
        axes.set_xticks(dims, [str(d) for d in dims])
        axes.minorticks_off()
        axes.set_xlabel("dimension of the reduced code")
        axes.set_ylabel(f"MIG ({HEADLINE_KIND})")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        _legend(figure, axes)
        return figure

    return draw(build, "dimension")


def rate_distortion(compared: Comparable, dim: int) -> Drawing:
    """Every run by its held-out rate and distortion, its colour the MIG at one dimension; lines of equal ELBO."""
    flat_or_deep = (("o", "NVAE", False), ("s", "flat VAE", True))

    def build() -> Figure:
        figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
        score = {id(run): run.reduced(HEADLINE_KIND, dim) for run in compared.runs}
        known = [v for v in score.values() if v is not None]
        top = max([0.05, *known])
        drawn = None
        for marker, name, is_flat in flat_or_deep:
            runs = [r for r in compared.runs if r.is_flat == is_flat and r.held_out("rate") is not None]
            if not runs:
                continue
            shade = np.array([score[id(r)] if score[id(r)] is not None else np.nan for r in runs], dtype=np.float64)
            drawn = axes.scatter(
                np.array([r.held_out("rate") for r in runs], dtype=np.float64),
                np.array([r.held_out("distortion") for r in runs], dtype=np.float64),
                c=shade,
                vmin=0.0,
                vmax=top,
                cmap="plasma",
                plotnonfinite=True,
                marker=marker,
                s=60,
                edgecolors=INK,
                linewidths=0.6,
                label=name,
            )
        low, high = axes.get_xlim()
        bottom, ceiling = axes.get_ylim()
        for total in MaxNLocator(6).tick_values(low + bottom, high + ceiling):
            axes.plot([low, high], [total - low, total - high], color="#888888", linewidth=0.6, zorder=0)
        axes.set_xlim(low, high)
        axes.set_ylim(bottom, ceiling)
        axes.set_xlabel("rate, nats per image")
        axes.set_ylabel("distortion, nats per image")
        if drawn is not None and known:
            figure.colorbar(drawn, ax=axes, label=f"MIG ({HEADLINE_KIND}, d = {dim})")
        _legend(figure, axes)
        return figure

    return draw(build, "rate-distortion")
