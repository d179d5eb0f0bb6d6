"""Runs of the hierarchy and scaling studies: train members of the family, score them, and store the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.studies import stored
from launch.studies.family import Data, DataName, Length, Member
from launch.training import jobs
from launch.training.jobs import ScriptRun


@dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """Settings that both studies of this family share: runs, lengths, folders."""

    datasets: tuple[DataName, ...] = ("dsprites", "celeba")
    """Data sets; dsprites is rendered, celeba needs its files."""
    celeba_root: Path | None = None
    """Folder of CelebA, whole or a part of it; default data/celeba."""
    cache_dir: Path | None = None
    """Folder for decoded images; default beside the data."""
    seeds: int = 3
    """Seeds 0, 1, ... of each model."""
    nvae_steps: int = 400
    """Steps of 16 images of each NVAE: a minute of one CPU core."""
    flat_steps: int = 700
    """Steps of 64 images of each flat VAE, which take about as long."""
    images: int = 3000
    """Number of test images for the scores."""
    out: Path = Path("studies/family")
    """Folder of the runs."""
    store: Path = Path("docs/studies/family")
    """Folder of their scores, from which the reports are made."""
    workers: int | None = None
    """Number of runs at once; default one per GPU, or without a GPU one single-threaded run per core."""
    report_only: bool = False
    """Only write the report from the stored scores."""

    def __post_init__(self) -> None:
        for name in ("seeds", "nvae_steps", "flat_steps", "images", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}; give 1 or more")
        if not self.datasets:
            raise ValueError("--datasets is empty; give dsprites, celeba or both")

    @property
    def length(self) -> Length:
        """Training length of each kind of model."""
        return Length(self.nvae_steps, self.flat_steps)

    @property
    def scoring(self) -> stored.Scoring:
        """Settings of the scores."""
        return stored.Scoring(self.images, elbo_images=500, untrained=True)

    def data(self, name: DataName) -> Data:
        """A data set's flags."""
        return Data(name, self.celeba_root if name == "celeba" else None, self.cache_dir)

    def claim(self) -> None:
        """Refuse to mix runs of another length in one folder."""
        lengths = {"nvae_steps": self.nvae_steps, "flat_steps": self.flat_steps}
        jobs.claim(self.out, "family.json", lengths)

    def runs(self, name: DataName, members: list[Member]) -> list[ScriptRun]:
        """Every member with every seed, one seed after another, so that a stopped study has all members."""
        data = self.data(name)
        return [member.run(data, self.length, seed, self.out) for seed in range(self.seeds) for member in members]

    def train_and_score(self, wanted: Mapping[DataName, Sequence[ScriptRun]]) -> list[str]:
        """Train, score and store the missing runs; return one error message per failed run."""
        faults: list[str] = []
        if self.report_only:
            return faults
        self.out.mkdir(parents=True, exist_ok=True)
        self.claim()
        for name, runs in wanted.items():
            faults += jobs.train_all(runs, self.workers)
            faults += stored.score_all(runs, self.scoring, self.workers)
            stored.store(runs, self.store / name)
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


def refuse(faults: Sequence[str]) -> None:
    """Raise the errors of failed runs, after everything else was done."""
    if faults:
        raise ValueError(f"{len(faults)} runs failed ({faults[0]}); correct the cause and repeat the command")
