"""One run of the Grouped-VAE study: an MLP VAE trained in this process and measured at regular points."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import datasets
from launch.console.config import DataConfig, SharedConfig
from launch.families import flat_figures
from launch.families.flat_vae import FLAT_PRESETS
from launch.machine import files
from launch.machine.distributed import Ranks
from launch.training import evaluation, loop
from launch.training.start import trainer_for
from metrics import mic, mig
from metrics.model import VAE

VARIANTS = ("grouped", "mlp-beta1", "mlp-beta5", "mlp-beta10")  # presets
FIRST_GROUP = (0, 1, 2)  # of the six latents; in the other models the same three, as a control
AT_ONCE = 512


@dataclass(frozen=True)
class Job:
    """A run: a preset trained for ``points`` x ``steps_per_point`` steps and measured after each part."""

    out: Path
    data: DataConfig
    variant: str
    seed: int
    points: int
    steps_per_point: int | None  # None: an epoch
    test_images: int
    device: str

    def __str__(self) -> str:
        return f"{self.variant}-seed{self.seed}"

    @property
    def record(self) -> Path:
        """The run's numbers; written last."""
        return self.out / "records" / f"{self}.json"

    @property
    def protocol(self) -> dict[str, Any]:
        """Protocol that a record must match to count."""
        return {name: getattr(self, name) for name in ("points", "steps_per_point", "test_images")}

    def config(self) -> SharedConfig:
        """The variant's preset with this run's values."""
        preset = FLAT_PRESETS[self.variant].build()
        kind: Literal["cpu", "cuda"] = "cpu" if self.device == "cpu" else "cuda"
        config: SharedConfig = replace(
            preset, data=self.data, run=replace(preset.run, seed=self.seed, epochs=self.points, device=kind)
        )
        return config

    def is_done(self) -> bool:
        """True if there is a record made by the same protocol."""
        return self.record.exists() and files.read_json(self.record).get("protocol") == self.protocol


def work(job: Job) -> None:
    """Train, measure, write the record."""
    started = time.monotonic()
    torch.manual_seed(job.seed)
    config, ranks = job.config(), Ranks(0, 1, torch.device(job.device))
    data, test = config.data.open("train"), config.data.open("test")
    order = datasets.Batches(len(data), config.run.batch_size, job.seed)
    every = job.steps_per_point or order.steps_per_epoch
    total = job.points * every
    trainer = trainer_for(config, data, ranks, total)
    points = []
    kept = loop.keep_on_device(config.run, data, ranks.device)
    with loop.load_batches(data, order, 0, total, ranks.device, kept) as batches:
        for batch in batches:
            trainer.train_step(batch.on(ranks.device))
            if trainer.state.step % every == 0:
                model = trainer.state.averaged
                points.append({"step": trainer.state.step, **measure(model, test, ranks, job.test_images)})
    files.write_json(
        job.record,
        {
            "variant": job.variant,
            "seed": job.seed,
            "protocol": job.protocol,
            "train_images": len(data),
            "steps_per_epoch": order.steps_per_epoch,
            "skipped_steps": trainer.state.num_skipped,
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
