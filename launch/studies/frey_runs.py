"""Runs of the Frey study, each a beta-VAE that writes numbers, posteriors and one picture; and the records of all."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import datasets
from launch.console import figures
from launch.console.config import DataConfig, SharedConfig
from launch.families import flat_figures
from launch.families.flat_vae import FLAT_PRESETS, Initialisation
from launch.machine import files, noise
from launch.machine.distributed import Ranks
from launch.report.statistics import Spread
from launch.studies import study
from launch.studies.study import RecordedRun
from launch.training import evaluation
from metrics import covariance_distance
from metrics.model import VAE

Split = Literal["all", "train"]
SIDE = 6  # of the grid of samples
BY_AGGREGATE_POSTERIOR = 1e-4  # up to this beta the aggregate posterior's quantiles span the plane
CPU = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Job(RecordedRun):
    """A run: ``split`` "all" trains on the thesis' 1,965 frames, "train" on 1,415 with 200 held out (valid)."""

    out: Path
    data_root: Path | None
    split: Split
    latent_dim: int
    beta: float  # pixel-mean
    seed: int
    epochs: int
    init: Initialisation

    def __str__(self) -> str:
        """Name of its files."""
        plain = f"{self.split}-z{self.latent_dim}-beta{self.beta:.0e}-seed{self.seed}"
        return plain if self.init == "glorot" else f"{plain}-{self.init}"

    @property
    def protocol(self) -> dict[str, Any]:
        """Length that a record must have to count."""
        return {"epochs": self.epochs}

    @property
    def posteriors(self) -> Path:
        """Posterior means and stds of its training frames, float32 [N, D] each."""
        return self.out / "posteriors" / f"{self}.npz"

    def config(self) -> SharedConfig:
        """The preset "frey" with this run's values."""
        preset = FLAT_PRESETS["frey"].build()
        return replace(
            preset,
            data=DataConfig(dataset="frey", data_root=self.data_root),
            model=replace(preset.model, latent_dim=self.latent_dim, init=self.init),
            objective=replace(preset.objective, beta_pixel_mean=self.beta),
            run=replace(preset.run, epochs=self.epochs, seed=self.seed, device="cpu"),
        )


def work(job: Job) -> None:
    """Train, measure and write; the record comes last, so the files beside it are complete."""
    started = time.monotonic()
    config = job.config()
    data = config.data.open(job.split)
    held_out = config.data.open("valid") if job.split == "train" else None
    steps = datasets.Batches(len(data), config.run.batch_size, job.seed).steps_per_epoch
    curve, sums = list[dict[str, Any]](), torch.zeros(2, dtype=torch.float64)
    for trainer, report in study.train(config, data, CPU, job.epochs * steps):
        state = trainer.state
        sums += torch.stack([report.terms["distortion"], report.terms["rate"]]).double()
        if state.step % steps == 0:  # means over the epoch's steps
            curve.append(dict(zip(("distortion", "rate"), (sums / steps).tolist(), strict=True)))
            curve[-1] |= {"held_out": _measure(state.averaged, held_out)} if held_out is not None else {}
            sums.zero_()
    model = state.averaged
    codes = _codes(model, data)
    _write_posteriors(job, codes)
    figures.save(samples(model, codes, job), job.out / "samples" / f"{job}.png")
    distance = covariance_distance(codes.mean, codes.std.square())
    files.write_json(
        job.record,
        {
            **{name: getattr(job, name) for name in ("split", "latent_dim", "beta", "seed", "epochs", "init")},
            "num_images": len(data),
            "steps": state.step,
            "skipped_steps": state.num_skipped,
            "curve": curve,
            "final": _measure(model, data),
            "final_held_out": None if held_out is None else _measure(model, held_out),
            "kl_per_latent": codes.kl.mean(0).tolist(),
            "covariance_distance": {"score": distance.score, "offdiagonal": distance.offdiagonal},
            "seconds": time.monotonic() - started,
        },
    )


def _measure(model: VAE, data: datasets.Dataset) -> dict[str, float]:
    """Mean distortion and rate in nats over all frames, and the decibels of reconstructions."""
    result = evaluation.evaluate(model, data, CPU, batch_size=64, seed=0).summary()
    return {name: float(result[name]) for name in ("distortion", "rate", "psnr")}


@torch.no_grad()
def _codes(model: VAE, data: datasets.Dataset) -> flat_figures.Codes:
    return flat_figures.encode(model, datasets.to_float(data.images(range(len(data))), data.spec, CPU.device))


def _write_posteriors(job: Job, codes: flat_figures.Codes) -> None:
    job.posteriors.parent.mkdir(parents=True, exist_ok=True)
    mean, std = codes.mean.numpy(), codes.std.numpy()
    files.write_atomically(job.posteriors, lambda file: np.savez(file, mean=mean, std=std))


@torch.no_grad()
def samples(model: VAE, codes: flat_figures.Codes, job: Job) -> figures.Picture:
    """6 x 6 images: over the latent plane of a model with two latents, else drawn from the prior.

    Quantiles from .05 to .95 span the plane: those of the prior or, at small beta, of the aggregate posterior, which
    then differs from the prior.
    """
    source = noise.generator(CPU.device, noise.FIGURES, job.seed)
    title = f"Frey Faces, {job.latent_dim} latents, beta {job.beta:g}, seed {job.seed}"
    if job.latent_dim != 2:
        drawn = model.sample(SIDE * SIDE, generator=source)
        return figures.grid(drawn, SIDE, title=f"{title}: samples at temperature 1")
    if job.beta > BY_AGGREGATE_POSTERIOR:
        quantiles = flat_figures.prior_quantiles(SIDE)
        return flat_figures.manifold(model, quantiles, quantiles, title=title)
    drawn = codes.draw(10_000, source)
    across, down = _quantiles(drawn[:, 0]), _quantiles(drawn[:, 1])
    return flat_figures.manifold(model, across, down, title=title)


def _quantiles(values: Tensor) -> Tensor:
    return values.quantile(torch.linspace(0.05, 0.95, SIDE))


# --- Records ----------------------------------------------------------------------------------------------------------


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

    def spread(self, split: str, latent_dim: int, beta: float, part: str, name: str) -> Spread:
        """Mean and spread over the seeds of a setting of ``record[part][name]``."""
        return Spread.of([value_of(record[part], name) for record in self.cell(split, latent_dim, beta)])


def value_of(numbers: dict[str, Any], name: str) -> float:
    """One number of a record's part; "negative_elbo" is distortion + rate."""
    if name == "negative_elbo":
        return float(numbers["distortion"]) + float(numbers["rate"])
    return float(numbers[name])
