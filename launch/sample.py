"""Sample images from a trained model's prior, as a PNG grid or as single files.

Examples:
  python launch/sample.py --run runs/celeba-nvae-tiny-seed0 --temperature 0.7
  python launch/sample.py --run runs/celeba-nvae-tiny-seed0 --temperature 0.6 0.8 1 1 --num 64 --readjust-bn 100 --out samples.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import launch  # noqa: F401  # first, to set how OpenMP's threads wait before torch is loaded

# isort: split
import torch
from torch import Tensor

from launch.console import errors, figures
from launch.console.flags import parse
from launch.console.terminal import say
from launch.machine import distributed, noise
from launch.results.run import open_run
from metrics.model import VAE


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of sampling."""

    run: Path
    """Run folder."""
    num: int = 16
    """Number of images."""
    temperature: tuple[float, ...] = (1.0,)
    """Factor on the priors' standard deviations, below 1 for cleaner images: one number, or one per group, top
    first."""
    pixel_temperature: float = 1.0
    """Temperature of --pixels sample; lower means less noise."""
    readjust_bn: int = 0
    """Number of batches of samples at this temperature from which batch-norm statistics are re-estimated; 0 keeps those
    of training."""
    pixels: Literal["mean", "sample"] = "mean"
    """Show the mean of the likelihood, or a sample from it."""
    seed: int = 0
    """Seed of the samples."""
    out: Path | None = None
    """PNG file of the grid; default <run>/figures/samples_t<temperature>_seed<seed>.png."""
    files: Path | None = None
    """Folder for one PNG file per image instead of a grid; score.py --images reads it."""
    batch_size: int = 64
    """Images per batch."""
    weights: Literal["auto", "raw"] = "auto"
    """auto: the averaged weights if the run has them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.num < 1 or self.batch_size < 1:
            raise ValueError(f"--num {self.num} --batch-size {self.batch_size}; give 1 or more")
        if self.readjust_bn < 0:
            raise ValueError(f"--readjust-bn {self.readjust_bn}; give a number of batches, e.g. 100, or 0")
        if self.out is not None and (self.out.is_dir() or self.out.suffix.lower() != ".png"):
            raise ValueError(f"--out {self.out} is not a PNG file; give one that ends in .png, or --files FOLDER")
        if self.files is not None and (self.out is not None or self.files.is_file()):
            raise ValueError(f"--files {self.files} must be a folder, without --out; give one of the two")
        if not self.temperature:
            raise ValueError("--temperature has no value; give one number or one per group")


def temperature_of(model: VAE, typed: tuple[float, ...]) -> float | tuple[float, ...]:
    """Return the temperature in the form that models accept: one number, or one for each group.

    Raises:
        ValueError: neither one number nor one per group.
    """
    num_groups = len(model.group_shapes)
    if len(typed) not in (1, num_groups):
        raise ValueError(f"--temperature has {len(typed)} values for {num_groups} group(s); give one, or one per group")
    return typed[0] if len(typed) == 1 else typed


def readjust(model: VAE, config: SampleConfig, source: torch.Generator) -> None:
    """Give the model the batch-norm statistics of samples at the requested temperature."""
    temperature = temperature_of(model, config.temperature)
    model.readjust_batch_norm(config.readjust_bn, config.batch_size, temperature, source)


def draw(model: VAE, config: SampleConfig, source: torch.Generator) -> Tensor:
    """Sample the requested images, [N, C, H, W] in [0, 1].

    Raises:
        ValueError: a temperature of 0 or below, or not one per group.
        FloatingPointError: images that are not finite.
    """
    temperature = temperature_of(model, config.temperature)
    drawn = [
        model.sample(
            min(config.batch_size, config.num - done),
            temperature,
            pixels=config.pixels,
            generator=source,
            pixel_temperature=config.pixel_temperature,
        )
        for done in range(0, config.num, config.batch_size)
    ]
    images = torch.cat(drawn)
    if not torch.isfinite(images).all():
        raise FloatingPointError("samples are not finite; try --readjust-bn 100 or another checkpoint")
    return images


def _save_each(images: Tensor, folder: Path) -> Path:
    """Write each image at its own size as <folder>/00000.png, 00001.png, ..."""
    width = max(5, len(str(len(images) - 1)))
    names = [f"{i:0{width}d}.png" for i in range(len(images))]
    if folder.is_dir() and (others := {path.name for path in folder.iterdir()} - set(names)):
        raise ValueError(
            f"--files {folder} holds other files ({min(others)}), which would count as samples; give an empty folder"
        )
    for name, image in zip(
        names, figures.to_uint8(images if images.shape[1] in (1, 3) else images[:, :1]), strict=True
    ):
        figures.save(image.permute(1, 2, 0).squeeze(2).numpy(), folder / name)
    return folder


def main(arguments: list[str]) -> None:
    """Parse, sample, save, and print the path."""
    config = parse(SampleConfig, None, arguments, prog="sample.py", description=__doc__ or "")
    ranks = distributed.start(config.device)
    run = open_run(config.run, device=ranks.device, weights=config.weights)
    model = run.model
    if config.readjust_bn:
        readjust(model, config, noise.generator(ranks.device, noise.FIGURES, "batch norm"))
    images = draw(model, config, noise.generator(ranks.device, noise.FIGURES, config.seed))
    shown = "-".join(f"{t:g}" for t in config.temperature)
    if config.files is not None:
        saved = _save_each(images, config.files)
    else:
        name = f"samples_t{shown}_seed{config.seed}.png"
        title = f"{run.title}: samples at temperature {shown}, seed {config.seed}"
        saved = figures.save(figures.grid(images, title=title), config.out or run.files.figures / name)
    say(f"{config.num} samples of {config.run} (step {run.step:,}) at temperature {shown}: {saved}")


if __name__ == "__main__":
    errors.main(main)
