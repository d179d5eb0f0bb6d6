"""Plots of the scaling study; every run is a point, flat VAEs are squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from launch.console.figures import Picture, render, subplots
from launch.studies.scaling_fit import Measured, PowerLaw

COLOURS = ("#4472a8", "#c46a2f", "#4f9a5b", "#8a5ca8", "#a84453", "#777777")
SIZE = (5.2, 3.8)  # inches
Value = Callable[[Measured], float | None]


def _families(runs: Sequence[Measured], label: Callable[[Measured], str]) -> dict[str, tuple[str, list[Measured]]]:
    """Runs by label, each with a colour."""
    found: dict[str, list[Measured]] = {}
    for run in runs:
        found.setdefault(label(run), []).append(run)
    return {name: (COLOURS[i % len(COLOURS)], of) for i, (name, of) in enumerate(found.items())}


def kind(run: Measured) -> str:
    """'flat', or depth and scales of an NVAE."""
    if run.is_flat:
        return "flat VAE"
    scales = f", {run.num_scales} scales" if run.num_scales > 1 else ""
    return f"{run.depth} groups{scales}"


def against(
    runs: Sequence[Measured],
    coordinates: Callable[[Measured], Sequence[tuple[float, float]]],
    xlabel: str,
    law: PowerLaw | None,
    data: str,
) -> Picture:
    """bits/dim against a size on logarithmic axes, with the power law's median over the range of the data.

    ``data`` names the data set in the title, here and below.
    """
    figure, axes = subplots(size=SIZE)
    for name, (colour, of) in _families(runs, kind).items():
        for i, run in enumerate(of):
            x, y = zip(*coordinates(run), strict=True)
            style = "s-" if run.is_flat else "o-"
            axes.plot(x, y, style, color=colour, alpha=0.6, markersize=4, linewidth=0.8, label=name if i == 0 else None)
    if law is not None:
        low, high = axes.get_xlim()
        grid = np.geomspace(max(low, 1e-9) if low > 0 else law.largest / 100, high, 50)
        medians, intervals = zip(*(law.at(x) for x in grid), strict=True)
        axes.plot(grid, medians, color="black", linewidth=1, label=f"NVAE: x^-{law.exponent.mean:.3f}")
        if None not in intervals:
            axes.fill_between(grid, *np.array(intervals).T, color="black", alpha=0.12)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    for places in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        places("{x:g}")  # less than a power of ten: no 6 x 10^0
    axes.set_ylabel("held-out bits/dim")
    axes.legend(fontsize=7)
    return render(figure, f"{data}: held-out bits/dim against {xlabel}; every line a run")


def depth(runs: Sequence[Measured], data: str) -> Picture:
    """ELBO against the number of groups at equal parameters; a line for each width, joining the means."""
    figure, axes = subplots(size=SIZE)
    one_scale = [run for run in runs if run.num_scales == 1]
    for name, (colour, of) in _families(
        one_scale, lambda run: "flat VAE" if run.is_flat else f"width {run.width}"
    ).items():
        depths = sorted({run.depth for run in of})
        axes.plot([run.depth for run in of], [run.elbo for run in of], "o", color=colour, alpha=0.6, markersize=4)
        means = [np.mean([run.elbo for run in of if run.depth == d]) for d in depths]
        axes.plot(depths, means, color=colour, label=name, marker="s" if len(depths) == 1 else None)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("groups of latents")
    axes.set_ylabel("held-out ELBO, nats (higher is better)")
    axes.legend(fontsize=7)
    return render(figure, f"{data}: ELBO against depth at equal parameters; every point a run, lines join means")


def scores(runs: Sequence[Measured], data: str) -> Picture:
    """MIG of codes of ten dimensions, and group-MIG, against the number of groups."""
    against_depth = {"MIG, d = 10": lambda run: run.mig, "group-MIG": lambda run: run.group_mig}
    figure, panels = _panels(runs, "groups of latents", lambda run: run.depth, against_depth)
    for axes in panels:
        axes.set_xscale("log", base=2)
    figure.tight_layout()
    return render(figure, f"{data}: scores of codes against depth; every point a run")


def cost(runs: Sequence[Measured], data: str) -> Picture:
    """Training time and memory per image against work."""
    against_work = {
        "ms of training per image, all included": lambda run: 1e3 / run.images_per_s,
        "activations, MiB per image (counted)": lambda run: run.memory_mib,
    }
    figure, panels = _panels(runs, "GFLOP of training per image", lambda run: run.gflop_per_image, against_work)
    for axes in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
    figure.tight_layout()
    return render(figure, f"{data}: time and memory of training; every point a run")


def _panels(runs: Sequence[Measured], xlabel: str, x: Value, panels: Mapping[str, Value]) -> tuple[Any, Any]:
    """Two panels with a point for each run that has the number, a colour for each kind."""
    figure, grid = subplots(1, len(panels), size=(8.4, 3.4))
    for axes, (ylabel, y) in zip(grid, panels.items(), strict=True):
        for name, (colour, of) in _families(runs, kind).items():
            points = [(x(run), y(run)) for run in of if y(run) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), "o", color=colour, alpha=0.6, markersize=4, label=name)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    grid[0].legend(fontsize=7)
    return figure, grid
