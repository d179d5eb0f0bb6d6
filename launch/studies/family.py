"""The models that the studies of hierarchies train: small NVAEs of some depth, width and number of scales, and flat VAEs.

NVAEs of one scale share ``CELLS`` cells and ``CHANNELS`` latent channels among their groups, so that depth changes neither
the number of parameters (by more than a tenth) nor the work of a step nor the number of latents: only how these are
factorised. All are small enough for two CPU cores. Their sizes are given by the command line of a training script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.training.jobs import Script, ScriptRun

DataName = Literal["dsprites", "celeba"]
CELLS = 8  # encoder cells of the towers, shared by the groups
CHANNELS = 16  # latent channels, shared by the groups
MIXTURES = ("--num-mixtures", "3")


@dataclass(frozen=True)
class Data:
    """A data set as flags of the training scripts."""

    name: DataName
    root: Path | None
    cache_dir: Path | None

    def arguments(self) -> tuple[str, ...]:
        """The flags of the data set. dSprites is always rendered, so that every reader has the same images."""
        found = ["--dataset", self.name]
        if self.name == "dsprites":
            found += ["--dsprites-source", "rendered"]
        for flag, value in (("--data-root", self.root), ("--cache-dir", self.cache_dir)):
            found += [] if value is None else [flag, str(value)]
        return tuple(found)


@dataclass(frozen=True)
class Length:
    """Training length of each kind of model, in steps."""

    nvae_steps: int
    flat_steps: int
    schedule: str = "constant"
    """Schedule of the learning rate. If it is constant, intermediate points count like the end of a shorter run."""
    points: int = 4
    """Number of evaluations of a run, evenly spread."""
    eval_images: int = 256
    """Number of held-out images of each; the last takes twice as many."""

    def arguments(self, script: Script, pace: float) -> tuple[str, ...]:
        """The flags of a training script for a model of a given pace."""
        steps = max(1, round(pace * (self.nvae_steps if script == "train_nvae" else self.flat_steps)))
        images = self.eval_images
        return (
            *("--max-steps", str(steps), "--eval-every", str(max(1, steps // self.points))),
            *("--eval-images", str(images), "--final-eval-images", str(2 * images), "--iw-samples", "2"),
            *("--figure-images", "8", "--lr-schedule", self.schedule),
        )


@dataclass(frozen=True)
class Member:
    """A model of the family: a descriptive name, its flags, and its steps in the time of one of the plainest model."""

    name: str
    script: Script
    flags: tuple[str, ...]
    pace: float = 1.0

    def run(self, data: Data, length: Length, seed: int, out: Path) -> ScriptRun:
        """The run that trains it on ``data`` with ``seed``, in ``out / data / name-seed``."""
        arguments = (*data.arguments(), *self.flags, *length.arguments(self.script, self.pace), "--seed", str(seed))
        return ScriptRun(self.script, arguments, out / data.name / f"{self.name}-seed{seed}")


def _nvae(name: str, groups: Sequence[int], width: int, cells: tuple[int, int], latent_channels: int) -> Member:
    flags = {
        "--num-scales": [len(groups)],
        "--groups-per-scale": groups,
        "--latent-channels": [latent_channels],
        "--channels-enc": [width],
        "--channels-dec": [width],
        "--preprocess-blocks": [2],
        "--postprocess-blocks": [2],
        "--preprocess-cells": [1],
        "--postprocess-cells": [1],
        "--cells-per-group-enc": [cells[0]],
        "--cells-per-group-dec": [cells[1]],
    }
    typed = [word for flag, values in flags.items() for word in (flag, *map(str, values))]
    return Member(name, "train_nvae", ("--preset", "tiny", *MIXTURES, "--precision", "bf16", *typed))


def deep(depth: int, width: int) -> Member:
    """An NVAE of one scale (16x16 for 64x64 images) with ``depth`` groups and channels ``width`` at full resolution.

    Raises:
        ValueError: the depth does not divide the cells, or is 1; the decoder's tower begins after the first group.
    """
    if depth < 2 or CELLS % depth:
        raise ValueError(f"depth {depth}; choose 2, 4 or 8 groups, which share {CELLS} cells evenly")
    cells = (CELLS // depth, round((CELLS - 1) / (depth - 1)))
    return _nvae(f"nvae-groups{depth}-width{width}", (depth,), width, cells, CHANNELS // depth)


def scaled(num_scales: int, width: int) -> Member:
    """An NVAE of four groups on 1, 2 or 3 scales; with one scale it is ``deep(4, width)``.

    Raises:
        ValueError: the number of scales is not 1, 2 or 3.
    """
    split = {1: (4,), 2: (2, 2), 3: (2, 1, 1)}
    if num_scales not in split:
        raise ValueError(f"{num_scales} scales; choose 1, 2 or 3")
    if num_scales == 1:
        return deep(4, width)
    cells = (CELLS // 4, round((CELLS - 1) / 3))
    return _nvae(f"nvae-scales{num_scales}-width{width}", split[num_scales], width, cells, CHANNELS // 4)


def flat(data: DataName, objective: Literal["vae", "beta", "tc"], beta: float | None = None) -> Member:
    """A flat VAE: Burgess' network with ten latents on dSprites, the conv net with 32 elsewhere; batch 64, lr 5e-4."""
    preset = ("--preset", "burgess") if data == "dsprites" else ("--preset", "small", *MIXTURES)
    weight = () if beta is None else ("--beta", f"{beta:g}")
    name = f"flat-{objective}" + ("" if beta is None else f"{beta:g}")
    return Member(name, "train_flat_vae", (*preset, "--objective", objective, *weight))
