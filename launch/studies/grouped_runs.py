"""One run of the Grouped-VAE study: an MLP VAE trained in this process and measured at regular points."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import datasets
from launch.console.config import DataConfig, SharedConfig
from launch.families import flat_figures
from launch.families.flat_vae import FLAT_PRESETS
from launch.machine import files
from launch.machine.distributed import Ranks
from launch.studies import study
from launch.studies.study import RecordedRun
from launch.training import evaluation
from metrics import mic, mig
from metrics.model import VAE

VARIANTS = ("grouped", "mlp-beta1", "mlp-beta5", "mlp-beta10")  # presets
FIRST_GROUP = (0, 1, 2)  # of the six latents; in the other models the same three, as a control
AT_ONCE = 512


@dataclass(frozen=True)
class Job(RecordedRun):
    """A run: a preset trained for ``points`` x ``steps_per_point`` steps and measured after each part."""

    out: Path
    data: DataConfig
    variant: str
    seed: int
    points: int
    steps_per_point: int | None  # None: an epoch
    test_images: int
    device: str | None  # None: a GPU of the process if it has one

    def __str__(self) -> str:
        return f"{self.variant}-seed{self.seed}"

    @property
    def protocol(self) -> dict[str, Any]:
        """Protocol that a record must match to count."""
        return {"protocol": {name: getattr(self, name) for name in ("points", "steps_per_point", "test_images")}}

    def config(self) -> SharedConfig:
        """The variant's preset with this run's values."""
        preset = FLAT_PRESETS[self.variant].build()
        return replace(preset, data=self.data, run=replace(preset.run, seed=self.seed, epochs=self.points))


def work(job: Job) -> None:
    """Train, measure, write the record."""
    started = time.monotonic()
    config, device = job.config(), job.device or ("cuda" if torch.cuda.is_available() else "cpu")
    ranks = Ranks(0, 1, torch.device(device))
    data, test = config.data.open("train"), config.data.open("test")
    steps_per_epoch = datasets.Batches(len(data), config.run.batch_size, job.seed).steps_per_epoch
    every, points, num_skipped = job.steps_per_point or steps_per_epoch, [], 0
    for trainer, _ in study.train(config, data, ranks, job.points * every):
        state = trainer.state
        if state.step % every == 0:
            points.append({"step": state.step, **measure(state.averaged, test, ranks, job.test_images)})
            num_skipped = state.num_skipped
    files.write_json(
        job.record,
        {
            "variant": job.variant,
            "seed": job.seed,
            **job.protocol,
            "train_images": len(data),
            "steps_per_epoch": steps_per_epoch,
            "skipped_steps": num_skipped,
            "points": points,
            "seconds": time.monotonic() - started,
        },
    )


@torch.no_grad()
def measure(model: VAE, test: datasets.Dataset, ranks: Ranks, num_images: int) -> dict[str, Any]:
    """Distortion and rate in nats, MIG (20 bins), and MIC of the first three latents about each factor, of test images."""
    some = datasets.Subset(test, datasets.choose_rows(len(test), num_images, seed=0))
    result = evaluation.evaluate(model, some, ranks, batch_size=AT_ONCE, seed=0).summary()
    blocks = np.array_split(np.arange(len(some)), max(1, len(some) // AT_ONCE))
    parts = [
        flat_figures.encode(model, datasets.to_float(some.images(block), test.spec, ranks.device)) for block in blocks
    ]
    codes = torch.cat([part.mean for part in parts])
    factors = some.factors(range(len(some)))
    concentration = mic(codes, factors, FIRST_GROUP)
    return {
        "distortion": result["distortion"],
        "rate": result["rate"],
        "mig": mig(codes, factors).score,
        "mic": dict(zip(test.factor_names, concentration.per_factor.tolist(), strict=True)),
        "mic_corrected": dict(zip(test.factor_names, concentration.corrected.tolist(), strict=True)),
        "kl_per_latent": torch.cat([part.kl for part in parts]).mean(0).tolist(),
    }
