"""The studies of hierarchies: the models that they train, small NVAEs and flat VAEs, and how they train and score them.

NVAEs of one scale share ``CELLS`` cells and ``CHANNELS`` latent channels among their groups, so depth changes neither the
work of a step nor the number of latents, and the number of parameters by at most a tenth. It changes only how the latents
are grouped. All are small enough for two CPU cores. Their sizes are given by the command line of a training script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from launch.console.config import at_least
from launch.console.terminal import say
from launch.studies import study
from launch.studies.study import StudyConfig
from launch.training import jobs
from launch.training.jobs import Script, ScriptRun

DataName = Literal["dsprites", "celeba"]
CELLS = 8  # encoder cells of the towers, shared by the groups
CHANNELS = 16  # latent channels, shared by the groups
MIXTURES = ("--num-mixtures", "3")


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
    """Number of held-out images in each evaluation; the last one uses twice as many."""

    def arguments(self, member: Member) -> tuple[str, ...]:
        """The flags of the training script for a member."""
        steps = max(1, round(member.pace * (self.nvae_steps if member.script == "train_nvae" else self.flat_steps)))
        images = self.eval_images
        return (
            *("--max-steps", str(steps), "--eval-every", str(max(1, steps // self.points))),
            *("--eval-images", str(images), "--final-eval-images", str(2 * images), "--iw-samples", "2"),
            *("--figure-images", "8", "--lr-schedule", self.schedule),
        )


@dataclass(frozen=True)
class Member:
    """A model of the family: name, flags, and ``pace``, its steps in the time of one step of the simplest model."""

    name: str
    script: Script
    flags: tuple[str, ...]
    pace: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FamilyConfig(StudyConfig):
    """Settings of a study that compares members of the family over seeds."""

    datasets: tuple[DataName, ...] = ("dsprites", "celeba")
    """Data sets; dsprites is rendered, celeba needs its files."""
    celeba_root: Path | None = None
    """Folder of CelebA, whole or a part of it; default data/celeba."""
    cache_dir: Path | None = None
    """Folder for decoded images; default beside the data."""
    images: int = 3000
    """Number of test images for the scores."""
    out: Path = Path("studies/family")
    """Folder of the runs."""
    store: Path = Path("docs/studies/family")
    """Folder of their scores, from which the reports are made."""

    one_length: ClassVar[tuple[str, ...]]
    """The settings of the length, which all runs in one folder share."""
    scores_untrained: ClassVar[bool] = True
    """True if untrained weights are scored too, as a control."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "images")
        if not self.datasets:
            raise ValueError("--datasets is empty; give dsprites, celeba or both")

    def length(self, data: DataName) -> Length:
        """Training length of each kind of model on a data set."""
        raise NotImplementedError

    def members(self, data: DataName) -> list[Member]:
        """The models of the study, the reference first."""
        raise NotImplementedError

    def runs(self, data: DataName) -> list[ScriptRun]:
        """Every member with every seed, one seed after another, so that a stopped study has all members."""
        typed = ["--dataset", data]  # dSprites is always rendered, so that every reader has the same images
        typed += ["--dsprites-source", "rendered"] if data == "dsprites" else []
        typed += ["--data-root", str(self.celeba_root)] if data == "celeba" and self.celeba_root else []
        typed += ["--cache-dir", str(self.cache_dir)] if self.cache_dir else []
        length, every = self.length(data), [(seed, m) for seed in range(self.seeds) for m in self.members(data)]
        return [
            ScriptRun(
                member.script,
                (*typed, *member.flags, *length.arguments(member), "--seed", str(seed)),
                self.out / data / f"{member.name}-seed{seed}",
            )
            for seed, member in every
        ]

    def carry_out(self, write: Callable[[Mapping[DataName, list[Path]]], Path]) -> None:
        """Train, score and store the missing runs, then ``write`` the report from the folders of the stored runs.

        Raises:
            ValueError: no run has stored scores, or some runs failed.
        """
        wanted, faults = {name: self.runs(name) for name in self.datasets}, list[str]()
        if not self.report_only:
            jobs.claim(self.out, "family.json", {name: getattr(self, name) for name in self.one_length})
            scoring = ["--images", str(self.images), "--elbo-images", "500"]
            scoring += ["--untrained"] if self.scores_untrained else []
            for name, runs in wanted.items():
                faults += study.complete(runs, scoring, self.store / name, self.workers, self.dask)
        found = {name: paths for name, runs in wanted.items() if (paths := study.stored(runs, self.store / name))}
        if not found:
            raise ValueError(f"no scores are stored in {self.store}; start the study without --report-only")
        say(f"report {write(found)}")
        study.refuse(faults)


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
