"""One run of the Frey study: a beta-VAE trained in this process; it writes numbers, posteriors and one picture."""

from __future__ import annotations

import time
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
from launch.training import evaluation
from launch.training.start import trainer_for
from launch.training.step import Trainer
from metrics import covariance_distance
from metrics.model import VAE

Split = Literal["all", "train"]
SIDE = 6  # of the grid of samples
BY_AGGREGATE_POSTERIOR = 1e-4  # up to this beta the aggregate posterior's quantiles span the plane
CPU = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Job:
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
    def record(self) -> Path:
        """The run's numbers; written last."""
        return self.out / "records" / f"{self}.json"

    @property
    def posteriors(self) -> Path:
        """Posterior means and stds of its training frames, float32 [N, D] each."""
        return self.out / "posteriors" / f"{self}.npz"

    def config(self) -> SharedConfig:
        """The preset "frey" with this run's values."""
        preset = FLAT_PRESETS["frey"].build()
        config: SharedConfig = replace(
            preset,
            data=DataConfig(dataset="frey", data_root=self.data_root),
            model=replace(preset.model, latent_dim=self.latent_dim, init=self.init),
            objective=replace(preset.objective, beta_pixel_mean=self.beta),
            run=replace(preset.run, epochs=self.epochs, seed=self.seed, device="cpu"),
        )
        return config

    def is_done(self) -> bool:
        """True if there is a record of a run of this length."""
        return self.record.exists() and files.read_json(self.record).get("epochs") == self.epochs


def work(job: Job) -> None:
    """Train, measure and write; the record comes last, so the files beside it are complete."""
    started = time.monotonic()
    torch.manual_seed(job.seed)
    config = job.config()
    data = config.data.open(job.split)
    held_out = config.data.open("valid") if job.split == "train" else None
    order = datasets.Batches(len(data), config.run.batch_size, job.seed)
    total_steps = job.epochs * order.steps_per_epoch
    trainer = trainer_for(config, data, CPU, total_steps)
    curve = [_epoch(trainer, data, order, held_out) for _ in range(job.epochs)]
    model = trainer.state.averaged
    codes = _codes(model, data)
    _write_posteriors(job, codes)
    figures.save(samples(model, codes, job), job.out / "samples" / f"{job}.png")
    distance = covariance_distance(codes.mean, codes.std.square())
    files.write_json(
        job.record,
        {
            **{name: getattr(job, name) for name in ("split", "latent_dim", "beta", "seed", "epochs", "init")},
            "num_images": len(data),
            "steps": trainer.state.step,
            "skipped_steps": trainer.state.num_skipped,
            "curve": curve,
            "final": _measure(model, data),
            "final_held_out": None if held_out is None else _measure(model, held_out),
            "kl_per_latent": codes.kl.mean(0).tolist(),
            "covariance_distance": {"score": distance.score, "offdiagonal": distance.offdiagonal},
            "seconds": time.monotonic() - started,
        },
    )


def _epoch(
    trainer: Trainer, data: datasets.Dataset, order: datasets.Batches, held_out: datasets.Dataset | None
) -> dict[str, Any]:
    """Train for an epoch; distortion and rate in nats: means over its steps, and afterwards held out."""
    steps = order.steps_per_epoch
    sums = torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        _, rows = order.indices(trainer.state.step)
        terms = trainer.train_step(data.images(rows)).terms
        sums += torch.stack([terms["distortion"], terms["rate"]]).double()
    distortion, rate = (sums / steps).tolist()
    point: dict[str, Any] = {"distortion": distortion, "rate": rate}
    if held_out is not None:
        averaged = trainer.state.averaged
        point["held_out"] = _measure(averaged, held_out)
    return point


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
