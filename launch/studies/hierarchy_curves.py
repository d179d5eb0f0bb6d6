"""Learning curves against CPU time, and which model leads at which time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from launch.console.figures import Picture, render
from launch.report.statistics import Comparable, Configuration, Float64
from launch.studies.scaling_figures import COLOURS
from launch.training import records


def curve(folder: Path) -> Float64:
    """Read a stored run's evaluations: CPU minutes and held-out negative ELBO in nats, [2, n]."""
    points = {}
    for _, record in records.read(folder / records.NAME):
        if record is None:
            continue
        seconds, elbo = records.number(record, "cpu_seconds"), records.number(record, "val/elbo")
        if seconds is not None and elbo is not None:
            points[record["step"]] = seconds / 60, -elbo
    return np.array(sorted(points.values()), dtype=np.float64).reshape(-1, 2).T


def _curves(configuration: Configuration) -> list[Float64]:
    return [found for run in configuration.runs if (found := curve(run.path)).size]


def draw(compared: Comparable, title: str, floor: float | None) -> Picture:
    """Draw every run's held-out negative ELBO against its CPU time; configurations have colours.

    Args:
        compared: the runs.
        title: what the picture shows.
        floor: the smallest negative ELBO that any model can have, in nats, if it is known.
    """
    figure, axes = pyplot.subplots(figsize=(7.0, 4.2))
    for configuration, colour in zip(compared.configurations, itertools.cycle(COLOURS), strict=False):
        for i, (minutes, loss) in enumerate(_curves(configuration)):
            label = configuration.label if i == 0 else None
            axes.plot(minutes, loss, "o-", color=colour, markersize=3, linewidth=0.9, alpha=0.8, label=label)
    if floor is not None:
        axes.axhline(floor, color="black", linewidth=0.8, linestyle=":", label=f"no model can be below {floor:.1f}")
    axes.set_yscale("log")
    axes.set_xlabel("CPU minutes, compilation and evaluations included")
    axes.set_ylabel("held-out negative ELBO, nats")
    axes.legend(fontsize=8)
    return render(figure, title)


def at(configuration: Configuration, minutes: float) -> Float64:
    """Interpolate the negative ELBO of each run that was evaluated before and after ``minutes``, [n]."""
    values = [np.interp(minutes, x, y) for x, y in _curves(configuration) if x[0] <= minutes <= x[-1]]
    return np.array(values, dtype=np.float64)


def leaders(compared: Comparable, portions: Sequence[float] = (0.25, 0.5, 1.0)) -> str:
    """Say which configuration has the smallest mean loss at some portions of the time that all runs reached."""
    every = [_curves(configuration) for configuration in compared.configurations]
    if not all(every):
        return "The stored runs have no CPU times."
    last = min(found[0, -1] for runs in every for found in runs)
    said = []
    for portion in portions:
        means = {c.label: values.mean() for c in compared.configurations if len(values := at(c, portion * last))}
        if means:
            order = sorted(means, key=lambda label: float(means[label]))
            rest = f", then {order[1]} ({means[order[1]]:.1f})" if len(order) > 1 else ""
            said.append(f"after {portion * last:.1f} CPU minutes {order[0]} ({means[order[0]]:.1f} nats){rest}")
    return f"Smallest negative ELBO at equal CPU time, mean over seeds: {'; '.join(said)}."
