"""Held-out likelihood of a run: ELBO, rate, distortion, bits/dim, importance-weighted bound, and a no-latents baseline.

Examples:
  python launch/evaluate.py --run runs/celeba-nvae-tiny-seed0
  torchrun --standalone --nproc-per-node=gpu -- launch/evaluate.py --run runs/celeba-nvae-celeba64-seed0 --iw-samples 1000
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import launch  # noqa: F401  # first, to set how OpenMP's threads wait before torch is loaded

# isort: split
import datasets
from launch.console import errors
from launch.console.config import check_timeout
from launch.console.flags import parse
from launch.console.terminal import say
from launch.machine import distributed
from launch.machine.distributed import Ranks
from launch.report import tables
from launch.results.run import RunFlags, SavedRun
from launch.training import evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunFlags):
    """Settings of an evaluation."""

    split: str = "test"
    """train, valid or test."""
    images: int | None = None
    """Number of images, evenly spread over the split; default all."""
    iw_samples: int = 10
    """Samples of the importance-weighted bound; 0 leaves it out. Published results use 1,000."""
    batch_size: int = 64
    """Images per batch and process."""
    baseline: bool = True
    """Fit and show the no-latents baseline, if the model has bits/dim to compare with it."""
    seed: int = 0
    """Seed of the posterior samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes GPUs if there are any."""
    timeout_minutes: float = 30.0
    """Minutes to wait for another rank before all ranks stop and the missing one is named."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.iw_samples < 0 or (self.images is not None and self.images < 1):
            raise ValueError("--batch-size and --images must be 1 or more and --iw-samples 0 or more; change them")
        check_timeout(self.timeout_minutes)


def main(arguments: list[str]) -> None:
    """Parse, evaluate, print, and write evaluation-<split>.json to the run folder."""
    config = parse(EvaluateConfig, None, arguments, prog="evaluate.py", description=__doc__ or "")
    with distributed.joined(config.device, config.timeout_minutes) as ranks:
        _evaluate(config, ranks)


def _evaluate(config: EvaluateConfig, ranks: Ranks) -> None:
    run = config.open(ranks.device)
    with ranks.main_first():
        data = run.data(config.split)
    measure = run.family.measure(run.config, run.spec)
    result = evaluation.evaluate(
        run.model,
        data,
        ranks,
        batch_size=config.batch_size,
        seed=config.seed,
        num_images=config.images,
        importance_draws=config.iw_samples if measure.has_rate else 0,
        both_edges=True,
        at_means=not measure.has_rate,
    ).summary()
    if ranks.is_main:
        _report(config, run, data, result)
    evaluation.require_finite(result)


def _report(config: EvaluateConfig, run: SavedRun, data: datasets.Dataset, result: dict[str, Any]) -> None:
    """Print the evaluation and write it to the run folder."""
    measure = run.family.measure(run.config, run.spec)
    train = run.data("train") if config.baseline and measure.shows("bits_per_dim") else None
    reference = evaluation.no_latents(train, data, config.images) if train is not None else None
    where = f"{config.split} split of {data.name}"
    say(f"{config.run}, step {run.step:,}, {where}: {result['num_images']:,} images, 95 % intervals over images")
    print(tables.evaluation(result, reference, measure))
    record = {
        "checkpoint": run.checkpoint.name,
        "step": run.step,
        "split": config.split,
        "seed": config.seed,
        "weights": run.weights,
        "data": data.name,
    }
    run.files.write_json(f"evaluation-{config.split}.json", {**record, **result, "no_latents": reference})


if __name__ == "__main__":
    errors.main(main)
