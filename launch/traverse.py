"""Explore a model's latents: traverse, interpolate, swap groups, reconstruct from the top groups; PNG grids and GIFs.

Examples:
  python launch/traverse.py --run runs/celeba-nvae-tiny-seed0 --group 1 --by axis
  python launch/traverse.py --run runs/celeba-nvae-tiny-seed0 --show interpolate --image 3 --other 8
  python launch/traverse.py --run runs/celeba-nvae-tiny-seed0 --show swap --group 0 --image 3 --other 8
  python launch/traverse.py --run runs/celeba-nvae-tiny-seed0 --show top --temperature 0.7

Flat VAEs have one group, number 0. Pictures go into <run>/figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import launch  # noqa: F401  # first, to set how OpenMP's threads wait before torch is loaded

# isort: split
import numpy as np
import torch

import datasets
from launch.console import errors, figures
from launch.console.flags import parse
from launch.console.terminal import say
from launch.machine import distributed
from launch.results import pictures
from launch.results.pictures import TraverseConfig
from metrics import edits


def main(arguments: list[str]) -> None:
    """Parse, decode, save, and print the paths."""
    config = parse(TraverseConfig, None, arguments, prog="traverse.py", description=__doc__ or "")
    ranks = distributed.start(config.device)
    run = config.open(ranks.device)
    edits.check_group(run.model, config.group)
    data = run.data(config.split)
    for index in (config.image, config.other):
        if not 0 <= index < len(data):
            raise ValueError(f"there is no image {index}; the {config.split} split has images 0 to {len(data) - 1}")
    several, pair = datasets.choose_rows(len(data), config.images), np.array([config.image, config.other])
    x, chosen = (datasets.to_float(data.images(i), data.spec, ranks.device) for i in (several, pair))
    shown = pictures.show(run.model, x, chosen, config)
    if not torch.isfinite(shown.images).all():
        raise FloatingPointError(
            f"the images that {config.run} decodes are not finite, so its weights are broken; use an earlier checkpoint"
        )
    folder, name = config.out or run.files.figures, pictures.name_of(config)
    saved = [figures.save(shown.picture(run.title), folder / f"{name}.png")]
    if config.show in ("traverse", "interpolate"):
        saved.append(pictures.save_gif(shown.frames(run.title), folder / f"{name}.gif"))
    say(f"{config.show} of {config.run} (step {run.step:,}): {', '.join(map(str, saved))}")


if __name__ == "__main__":
    errors.main(main)
