"""Power laws and slopes with intervals over seeds.

The runs of each seed are fitted separately. The interval is Student's over the seeds' results, which needs no
assumption about the dependence between runs of one seed. Three seeds give 2 degrees of freedom and so a factor of 4.3:
wide, but honest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from launch.report.statistics import Estimate, mean_of
from launch.studies.scaling_points import Measured

T = TypeVar("T")


def by_seed(runs: Sequence[Measured]) -> dict[int, list[Measured]]:
    """Runs of each seed that has all members, so that an incomplete seed does not bias a fit."""
    members = {run.name for run in runs}
    seeds: dict[int, list[Measured]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run)
    return {seed: of_seed for seed, of_seed in sorted(seeds.items()) if {run.name for run in of_seed} == members}


def slope_per_doubling(runs: Sequence[Measured], size: Callable[[Measured], float]) -> Estimate | None:
    """ELBO in nats gained by doubling ``size``, with an offset for each width; None without two sizes.

    Within-group least squares: sizes and ELBOs are taken relative to their means over the runs of one width and seed.
    """
    slopes = []
    for of_seed in by_seed(runs).values():
        across, along = [], []
        for width in {run.width for run in of_seed}:
            same = [run for run in of_seed if run.width == width]
            x = np.log2([size(run) for run in same])
            y = np.array([run.elbo for run in same])
            across += list(x - x.mean())
            along += list(y - y.mean())
        spread = float(np.dot(across, across))
        if spread > 0.0:
            slopes.append(float(np.dot(across, along)) / spread)
    return mean_of(slopes) if slopes else None


def difference(runs: Sequence[Measured], one: str, other: str) -> Estimate | None:
    """ELBO of member ``one`` minus that of ``other``, seed by seed; None if no seed has both."""
    elbo = {(run.name, run.seed): run.elbo for run in runs}
    seeds = sorted({run.seed for run in runs})
    found = [elbo[one, s] - elbo[other, s] for s in seeds if (one, s) in elbo and (other, s) in elbo]
    return mean_of(found) if found else None


@dataclass(frozen=True)
class PowerLaw:
    """bits/dim = exp(log_scale) * x ** -exponent, for each seed."""

    log_scales: tuple[float, ...]
    exponents: tuple[float, ...]
    largest: float

    @property
    def exponent(self) -> Estimate:
        """Exponent, with its interval over seeds."""
        return mean_of(self.exponents)

    def at(self, x: float) -> tuple[float, float, float]:
        """(median, low, high) of bits/dim at ``x``: Student's 95 % interval over the seeds' predictions, of the logarithm."""
        logs = [a - b * math.log(x) for a, b in zip(self.log_scales, self.exponents, strict=True)]
        found = mean_of(logs)
        half_width = found.half_width or 0.0
        return math.exp(found.mean), math.exp(found.mean - half_width), math.exp(found.mean + half_width)

    def decades_beyond(self, x: float) -> float:
        """Powers of ten by which ``x`` lies beyond the largest fitted value."""
        return math.log10(x / self.largest)


def power_law(
    runs: Sequence[Measured], coordinates: Callable[[Measured], Sequence[tuple[float, float]]]
) -> PowerLaw | None:
    """Least squares on logarithms, separately for each seed.

    Args:
        runs: runs of one data set.
        coordinates: (x, bits/dim) that a run contributes.

    Returns:
        The fit, or None if no seed has two different x.
    """
    scales, exponents, largest = [], [], 0.0
    for of_seed in by_seed(runs).values():
        points = np.log([pair for run in of_seed for pair in coordinates(run)])
        if len(np.unique(points[:, 0])) < 2:
            continue
        slope, offset = np.polyfit(points[:, 0], points[:, 1], 1)
        scales.append(float(offset))
        exponents.append(-float(slope))
        largest = max(largest, float(np.exp(points[:, 0].max())))
    return PowerLaw(tuple(scales), tuple(exponents), largest) if scales else None


def by_compute(run: Measured) -> list[tuple[float, float]]:
    """(GFLOP of training, bits/dim) at every evaluation."""
    return [(run.training_gflop(point), point.bits_per_dim) for point in run.points]


def by_images(run: Measured) -> list[tuple[float, float]]:
    """(images seen, bits/dim) at every evaluation."""
    return [(point.images, point.bits_per_dim) for point in run.points]


def by_parameters(run: Measured) -> list[tuple[float, float]]:
    """(parameters, bits/dim) at the end."""
    return [(run.num_parameters, run.bits_per_dim)]
