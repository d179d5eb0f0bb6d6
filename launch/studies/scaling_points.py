"""Measurements of a stored run for the scaling study: size, work, and held-out results during training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from launch.console.config import SharedConfig
from launch.report.runs import ScoredRun, read_run
from launch.training import memory

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

    @property
    def is_flat(self) -> bool:
        """True for a flat VAE."""
        return self.width is None

    def training_gflop(self, point: Point) -> float:
        """Work of training until ``point``."""
        return self.gflop_per_image * point.images


@cache
def _counted(config: SharedConfig, spec: Any) -> tuple[float, float]:
    """GFLOP of training on an image, and MiB of its activations."""
    gflop = memory.gflop_per_image(config, spec)
    return gflop, memory.count(config, spec).activation_bytes_per_image / 2**20


def measured(path: Path) -> Measured:
    """Measure a stored run.

    Raises:
        ValueError: a record is missing or damaged.
    """
    run = read_run(path, None)
    config = run.saved.config
    gflop, mib = _counted(config, run.saved.spec)
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
        gflop_per_image=gflop,
        memory_mib=mib,
        images_per_s=run.summary["images_seen"] / run.summary["seconds"],
        points=_points(path, run),
        elbo=elbo,
        bits_per_dim=bits,
        mig=run.reduced("moments", 10),
        group_mig=run.score("groups"),
    )


def _points(path: Path, run: ScoredRun) -> tuple[Point, ...]:
    """Evaluations after the warm-up, one for each step."""
    steps, seen = run.summary["step"], run.summary["images_seen"]
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {line["step"]: line for line in lines if line["step"] >= WARM_UP * steps}
    return tuple(
        Point(round(seen * step / steps), line["val/elbo"], line["val/bits_per_dim"])
        for step, line in sorted(found.items())
    )


def all_measured(paths: Sequence[Path]) -> list[Measured]:
    """Measure several stored runs of one data set, in their order."""
    return [measured(path) for path in paths]
