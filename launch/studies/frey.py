"""The Frey study: what a beta-VAE on Frey Faces learns as beta grows, and where linear theory predicts it to stop.

Trains beta-VAEs at betas of 1e-6 to 1e3 (pixel-mean: of a loss averaged over pixels), 2, 3 and 5 latents, ten epochs, on
all 1,965 frames with 3 seeds and on 1,415 with 200 held out with one; then writes a report with figures. Repeat the
command to continue a stopped study: finished runs are not trained again.

Examples:
  python launch/studies/frey.py --data-root FOLDER
  python launch/studies/frey.py --data-root FOLDER --report-only
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import datasets
from launch.console import errors, flags
from launch.console.config import at_least
from launch.console.terminal import say
from launch.families.flat_vae import Initialisation
from launch.studies import frey_report, frey_runs
from launch.studies.study import StudyConfig
from launch.training import jobs


@dataclass(frozen=True, kw_only=True)
class FreyConfig(StudyConfig):
    """Runs of the study and the folder of its report."""

    data_root: Path | None = None
    """Folder with frey_rawface.mat; default data/frey."""
    out: Path = Path("studies/frey")
    """Folder of records, posteriors and samples (faces: not to be published)."""
    report: Path = Path("docs/studies/frey")
    """Folder of the report: index.md and plots without faces."""
    splits: tuple[Literal["all", "train"], ...] = ("all", "train")
    """all: the thesis' 1,965 frames; train: 1,415 with 200 held out."""
    betas: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 1e-1, 1e0, 1e1, 1e2, 1e3)
    """Pixel-mean weights of the KL: decades, and two more around the first critical beta."""
    latent_dims: tuple[int, ...] = (2, 3, 5)
    """Numbers of latents."""
    held_out_seeds: int = 1
    """Number of seeds for the split train, which the thesis did not have."""
    epochs: int = 10
    """Length of each run in epochs."""
    init: Initialisation = "glorot"
    """Initial weights: glorot (Keras' default, the thesis' library) or torch (smaller; can stick at the mean face)."""
    workers: int | None = 2
    """Processes of one thread each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "held_out_seeds", "epochs")
        for name in ("splits", "betas", "latent_dims"):
            if not getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} is empty; give at least one")

    def jobs(self) -> list[frey_runs.Job]:
        """Every run, the most informative first: those around the point where learning stops."""
        every = [
            frey_runs.Job(self.out, self.data_root, split, latent_dim, beta, seed, self.epochs, self.init)
            for split in self.splits
            for seed in range(self.seeds if split == "all" else self.held_out_seeds)
            for latent_dim in self.latent_dims
            for beta in self.betas
        ]
        return sorted(every, key=_urgency)


def _urgency(job: frey_runs.Job) -> tuple[bool, bool, bool]:
    """Sort key: the thesis' working point, then betas near the first critical one; held-out runs come last."""
    return job.split == "train", not (job.beta == 1e-3 and job.latent_dim == 2), not 1e-3 < job.beta < 1e-1


def main(arguments: list[str]) -> None:
    """Train what is missing, then report."""
    chosen = flags.parse(FreyConfig, FreyConfig(), arguments, prog="studies/frey.py", description=__doc__ or "")
    frames = datasets.open_dataset("frey", chosen.data_root, "all")  # first, because everything needs them
    wanted = chosen.jobs()
    if not chosen.report_only:
        jobs.run_all(wanted, frey_runs.work, frey_runs.Job.is_done, chosen.workers or 2, cluster=chosen.dask)
    say(f"report {frey_report.write(chosen.report, wanted, frames)}, samples {chosen.out / 'samples'}")


if __name__ == "__main__":
    errors.main(main)
