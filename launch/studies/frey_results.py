"""Records of the Frey study's runs, grouped by what varied."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.machine import files
from launch.report.statistics import Spread
from launch.studies.frey_runs import Job

# nats of mean KL below which the latents carry almost no information; the trainer warns at the same value
COLLAPSED = 0.05


@dataclass(frozen=True)
class Results:
    """Finished runs and the record of each."""

    records: dict[Job, dict[str, Any]]

    @classmethod
    def read(cls, wanted: Iterable[Job]) -> Results:
        """Read the records of those ``wanted`` jobs that are done."""
        return cls({job: files.read_json(job.record) for job in wanted if job.is_done()})

    def cell(self, split: str, latent_dim: int, beta: float) -> list[dict[str, Any]]:
        """The records of all seeds of one setting."""
        key = (split, latent_dim, beta)
        return [record for job, record in self.records.items() if (job.split, job.latent_dim, job.beta) == key]

    def betas(self, split: str, latent_dim: int) -> list[float]:
        """Betas, ascending, of which there is a run."""
        return sorted({job.beta for job in self.records if (job.split, job.latent_dim) == (split, latent_dim)})

    def latent_dims(self, split: str) -> list[int]:
        """Numbers of latents of which there is a run."""
        return sorted({job.latent_dim for job in self.records if job.split == split})

    def spread(self, split: str, latent_dim: int, beta: float, part: str, name: str) -> Spread | None:
        """Mean and spread over seeds of ``record[part][name]``; "negative_elbo" is distortion + rate. None without runs."""
        values = [value_of(record[part], name) for record in self.cell(split, latent_dim, beta)]
        return Spread.of(values) if values else None

    def stuck(self, below: float) -> list[Job]:
        """Runs that ended at the mean face though their beta is smaller than ``below``."""
        return [job for job, record in self.records.items() if job.beta < below and record["final"]["rate"] < COLLAPSED]


def value_of(numbers: dict[str, Any], name: str) -> float:
    """One number of a record's part."""
    if name == "negative_elbo":
        return float(numbers["distortion"]) + float(numbers["rate"])
    return float(numbers[name])


def as_csv(results: Results) -> str:
    """Every run's final numbers, a line each."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    measured = ("distortion", "rate", "psnr")
    header = ["split", "latent_dim", "beta_pixel_mean", "seed", "init", *measured]
    rows.writerow([*header, *(f"held_out_{name}" for name in measured), "covariance_distance", "steps"])
    for job, record in sorted(results.records.items(), key=lambda item: str(item[0])):
        held_out = record["final_held_out"] or {}
        rows.writerow(
            [job.split, job.latent_dim, f"{job.beta:g}", job.seed, job.init]
            + [f"{record['final'][name]:.4f}" for name in measured]
            + [f"{held_out[name]:.4f}" if held_out else "" for name in measured]
            + [f"{record['covariance_distance']['score']:.5f}", record["steps"]]
        )
    return text.getvalue()


def write_csv(results: Results, path: Path) -> None:
    """Write :func:`as_csv`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_csv(results), encoding="utf-8")
