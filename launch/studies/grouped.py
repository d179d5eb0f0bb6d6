"""The Grouped-VAE study on dSprites: MIG, MIC and reconstruction of grouped latents against beta-VAEs of the same network.

The full protocol (40 runs of 30 epochs, measured after each) is a GPU job; the reduced one (12 runs of 1,000 steps) takes
about twenty minutes on two idle cores and says in its report that it is reduced. Finished runs are not repeated.

Examples:
  python launch/studies/grouped.py
  python launch/studies/grouped.py --protocol reduced
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import torch

from launch.console import errors, flags
from launch.console.config import DataConfig, at_least
from launch.console.terminal import say
from launch.studies import grouped_report, grouped_runs
from launch.studies.grouped_runs import VARIANTS, Job
from launch.studies.study import StudyConfig
from launch.training import jobs


@dataclass(frozen=True, kw_only=True)
class GroupedConfig(StudyConfig):
    """Protocol of the study and the folder of its report."""

    protocol: Literal["full", "reduced"] = "full"
    """full: that of the Grouped-VAE report, for GPUs; reduced: for two CPU cores. It sets the length, the seeds and the folders."""
    seeds: int = 10
    """Seeds 0, 1, ... of each model."""
    points: int = 30
    """Number of measurements of each run, the last at its end."""
    steps_per_point: int | None = None
    """Steps between two points; default an epoch."""
    test_images: int = 10_000
    """Number of test images in every measurement."""
    data_root: Path | None = None
    """Folder of the official npz, if there is one; default data/dsprites."""
    dsprites_source: Literal["auto", "official", "rendered"] = "rendered"
    """Source of the images: the official npz, or rendered."""
    cache_dir: Path | None = None
    """Folder for rendered images; default beside the data."""
    out: Path = Path("studies/grouped-full")
    """Folder of the records."""
    report: Path = Path("docs/studies/grouped-full")
    """Folder of the report."""
    workers: int | None = None
    """Runs at once; default two for each GPU, or two processes of one thread without a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "points", "steps_per_point", "test_images")
        if self.seeds > grouped_report.MOST_EXACT:
            raise ValueError(f"--seeds {self.seeds}; the paired test counts up to {grouped_report.MOST_EXACT}")

    def jobs(self) -> list[Job]:
        """Every run, assigned to the GPUs in turn, one seed after another, so that a stopped study has all models."""
        data = DataConfig(
            dataset="dsprites", data_root=self.data_root, dsprites_source=self.dsprites_source, cache_dir=self.cache_dir
        )
        gpus = 0 if self.dask else torch.cuda.device_count()
        length = (self.points, self.steps_per_point, self.test_images)
        pairs = [(seed, variant) for seed in range(self.seeds) for variant in VARIANTS]
        return [
            Job(self.out, data, variant, seed, *length, f"cuda:{i % gpus}" if gpus else None)
            for i, (seed, variant) in enumerate(pairs)
        ]


REDUCED = GroupedConfig(
    protocol="reduced",
    seeds=3,
    points=2,
    steps_per_point=500,
    test_images=5_000,
    out=Path("studies/grouped-reduced"),
    report=Path("docs/studies/grouped-reduced"),
)


def main(arguments: list[str]) -> None:
    """Train what is missing, then report."""
    default = REDUCED if flags.typed_value("protocol", arguments) == "reduced" else GroupedConfig()
    chosen = flags.parse(GroupedConfig, default, arguments, prog="studies/grouped.py", description=__doc__ or "")
    wanted = chosen.jobs()
    if not chosen.report_only:
        wanted[0].data.open("train")  # renders the images once, before all runs need them at the same time
        workers = chosen.workers or 2 * max(1, torch.cuda.device_count())
        jobs.run_all(wanted, grouped_runs.work, Job.is_done, workers, cluster=chosen.dask)
    say(f"report {grouped_report.write(chosen.report, wanted, reduced=chosen.protocol == 'reduced')}")


if __name__ == "__main__":
    errors.main(main)
