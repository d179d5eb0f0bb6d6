"""Measurements of stored runs for the scaling study, and power laws and slopes with intervals over seeds.

The runs of each seed are fitted separately. The interval is Student's over the seeds' results, which needs no
assumption about the dependence between runs of one seed. Three seeds give 2 degrees of freedom, so an interval is
4.3 standard errors wide to each side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from launch.report.runs import ScoredRun, read_run
from launch.report.statistics import Estimate, mean_of, terms_of
from launch.training import memory, records

WARM_UP = 0.3  # fraction of a run before which the KL lacks its full weight and running statistics lag


@dataclass(frozen=True)
class Point:
    """A held-out evaluation: images seen so far, ELBO in nats, bits per dimension."""

    images: int
    elbo: float
    bits_per_dim: float


@dataclass(frozen=True)
class Measured:
    """Measurements of a run.

    Args:
        name: name of the member of the family, shared by its seeds.
        depth, width, num_scales: 1, None and 1 for a flat VAE.
        gflop_per_image: work of a training step, forward and backward.
        memory_mib: activations per image that the backward pass needs, counted.
        points: after the warm-up, the last at the end; on the valid split.
        elbo, bits_per_dim: on the images that were scored (test).
        terms: everything in which runs must agree for their numbers to be comparable.
    """

    name: str
    seed: int
    depth: int
    width: int | None
    num_scales: int
    num_parameters: int
    gflop_per_image: float
    memory_mib: float
    images_per_s: float
    points: tuple[Point, ...]
    elbo: float
    bits_per_dim: float
    mig: float | None
    group_mig: float | None
    terms: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_flat(self) -> bool:
        """True for a flat VAE."""
        return self.width is None

    def training_gflop(self, point: Point) -> float:
        """Work of training until ``point``."""
        return self.gflop_per_image * point.images


def measured(path: Path) -> Measured:
    """Measure a stored run.

    Raises:
        ValueError: a record is missing or damaged.
    """
    run = read_run(path, None)
    config, spec = run.saved.config, run.saved.spec
    model: Any = config.model  # type: ignore[attr-defined]
    shapes = run.record["group_shapes"]
    elbo, bits = run.held_out("elbo"), run.held_out("bits_per_dim")
    if elbo is None or bits is None or not run.summary:
        raise ValueError(f"{path} has no held-out ELBO or no summary; delete its scores.json and run the study again")
    return Measured(
        name=path.name.rpartition("-seed")[0],
        seed=run.seed,
        depth=len(shapes),
        width=getattr(model, "channels_enc", None),
        num_scales=len({tuple(shape[1:]) for shape in shapes}),
        num_parameters=run.record["num_parameters"],
        gflop_per_image=memory.gflop_per_image(config, spec),
        memory_mib=memory.count(config, spec).activation_bytes_per_image / 2**20,
        images_per_s=run.summary["images_seen"] / run.summary["seconds"],
        points=_points(path, run),
        elbo=elbo,
        bits_per_dim=bits,
        mig=run.reduced("moments", 10),
        group_mig=run.score("groups"),
        terms=terms_of(run),
    )


def _points(path: Path, run: ScoredRun) -> tuple[Point, ...]:
    """Evaluations after the warm-up, one for each step."""
    steps, seen = run.summary["step"], run.summary["images_seen"]
    found = records.with_number(path, "val/elbo").values()
    after = [record for record in found if record["step"] >= WARM_UP * steps]
    return tuple(Point(round(seen * r["step"] / steps), r["val/elbo"], r["val/bits_per_dim"]) for r in after)


# --- Fits -------------------------------------------------------------------------------------------------------------


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

    def at(self, x: float) -> tuple[float, tuple[float, float] | None]:
        """Bits/dim at ``x``: the median, and Student's 95 % interval over seeds, of the logarithm (None for one seed)."""
        logs = [a - b * math.log(x) for a, b in zip(self.log_scales, self.exponents, strict=True)]
        found = mean_of(logs)
        if found.half_width is None:
            return math.exp(found.mean), None
        return math.exp(found.mean), (math.exp(found.mean - found.half_width), math.exp(found.mean + found.half_width))

    def decades_beyond(self, x: float) -> float:
        """Orders of magnitude by which ``x`` exceeds the largest fitted value."""
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
