"""Settings that the hierarchy and the scaling study share, and how both train, score and store their members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.studies import stored
from launch.studies.family import Data, DataName, Length, Member
from launch.training import jobs
from launch.training.jobs import ScriptRun


@dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """Settings of a study that compares models over seeds."""

    datasets: tuple[DataName, ...] = ("dsprites", "celeba")
    """Data sets; dsprites is rendered, celeba needs its files."""
    celeba_root: Path | None = None
    """Folder of CelebA, whole or a part of it; default data/celeba."""
    cache_dir: Path | None = None
    """Folder for decoded images; default beside the data."""
    seeds: int = 3
    """Seeds 0, 1, ... of each model."""
    images: int = 3000
    """Number of test images for the scores."""
    out: Path = Path("studies/family")
    """Folder of the runs."""
    store: Path = Path("docs/studies/family")
    """Folder of their scores, from which the reports are made."""
    workers: int | None = None
    """Number of runs at once; default one per GPU, or without a GPU one single-threaded run per core."""
    dask: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers do the runs; they share the folders and this checkout."""
    report_only: bool = False
    """Only write the report from the stored scores."""

    def __post_init__(self) -> None:
        for name in ("seeds", "images", "workers"):
            at_least_one(name, getattr(self, name))
        if not self.datasets:
            raise ValueError("--datasets is empty; give dsprites, celeba or both")

    def length(self, data: DataName) -> Length:
        """Training length of each kind of model on a data set."""
        raise NotImplementedError

    @property
    def lengths(self) -> dict[str, Any]:
        """The settings of the length, which all runs in one folder share."""
        raise NotImplementedError

    @property
    def scoring(self) -> stored.Scoring:
        """Settings of the scores."""
        return stored.Scoring(self.images, elbo_images=500, untrained=True)

    def data(self, name: DataName) -> Data:
        """A data set's flags."""
        return Data(name, self.celeba_root if name == "celeba" else None, self.cache_dir)

    def runs(self, name: DataName, members: list[Member]) -> list[ScriptRun]:
        """Every member with every seed, one seed after another, so that a stopped study has all members."""
        data, length = self.data(name), self.length(name)
        return [member.run(data, length, seed, self.out) for seed in range(self.seeds) for member in members]

    def train_and_score(self, wanted: Mapping[DataName, Sequence[ScriptRun]]) -> list[str]:
        """Train, score and store the missing runs; return one error message per failed run."""
        faults: list[str] = []
        if self.report_only:
            return faults
        self.out.mkdir(parents=True, exist_ok=True)
        jobs.claim(self.out, "family.json", self.lengths)  # runs of another length are not mixed in
        for name, runs in wanted.items():
            faults += stored.complete(runs, self.scoring, self.store / name, self.workers, self.dask)
        return faults

    def stored(self, wanted: Mapping[DataName, Sequence[ScriptRun]]) -> dict[DataName, list[Path]]:
        """Folders with stored scores of the runs.

        Raises:
            ValueError: no run has stored scores.
        """
        found = {name: stored.of_runs(runs, self.store / name) for name, runs in wanted.items()}
        found = {name: paths for name, paths in found.items() if paths}
        if not found:
            raise ValueError(f"no scores are stored in {self.store}; start the study without --report-only")
        return found


def at_least_one(name: str, value: int | None) -> None:
    """Refuse a typed number below 1."""
    if value is not None and value < 1:
        raise ValueError(f"--{name.replace('_', '-')} {value}; give 1 or more")


def refuse(faults: Sequence[str]) -> None:
    """Raise the errors of failed runs, after everything else was done."""
    if faults:
        raise ValueError(f"{len(faults)} runs failed ({faults[0]}); correct the cause and repeat the command")
