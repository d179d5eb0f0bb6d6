"""Draw images from a trained model's prior, as a PNG grid.

Examples:
  python launch/sample.py --run runs/celeba-tiny-seed0 --temperature 0.7
  python launch/sample.py --run runs/celeba-tiny-seed0 --num 64 --seed 3 --out samples.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import torch

from launch import cli, distributed, figures, noise
from launch.config import parse
from launch.runs import open_run


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to draw."""

    run: Path
    """Run folder."""
    num: int = 16
    """Images."""
    temperature: float = 1.0
    """Factor on every prior's standard deviation; below 1 for cleaner images."""
    pixels: Literal["mean", "sample"] = "mean"
    """The likelihood's mean, or a draw from it."""
    seed: int = 0
    """Of the draws."""
    out: Path | None = None
    """PNG file; default <run>/figures/samples_t<temperature>_seed<seed>.png."""
    batch_size: int = 64
    """Images at once."""
    weights: Literal["auto", "raw"] = "auto"
    """auto: the averaged weights if the run has them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.num < 1 or self.batch_size < 1:
            raise ValueError(f"--num {self.num} --batch-size {self.batch_size}; give 1 or more")


def main(arguments: list[str]) -> None:
    """Parse, draw, save, and say where."""
    config = parse(SampleConfig, None, arguments, prog="sample.py", description=__doc__ or "")
    run = open_run(config.run)
    ranks = distributed.start(config.device)
    model, step, _ = run.load_model(ranks.device, weights=config.weights)
    source = noise.generator(ranks.device, noise.FIGURES, config.seed)
    drawn = [
        model.sample(
            min(config.batch_size, config.num - done), config.temperature, pixels=config.pixels, generator=source
        )
        for done in range(0, config.num, config.batch_size)
    ]
    name = f"samples_t{config.temperature:g}_seed{config.seed}.png"
    path = figures.save(figures.grid(torch.cat(drawn)), config.out or run.folder.figures / name)
    print(f"{config.num} samples of {config.run} (step {step:,}) at temperature {config.temperature:g}: {path}")


if __name__ == "__main__":
    cli.main(main)
