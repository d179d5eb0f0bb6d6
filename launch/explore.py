"""Explore a trained run in the browser: move latents of an image or a sample, and exchange groups between two images.

Sliders move a flat VAE's latents, highest KL first, or the principal axes of a hierarchy's groups. The page is served
only on 127.0.0.1 and contacts no other host.

Example:
  python launch/explore.py --run zoo/dsprites-nvae
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import launch  # noqa: F401  # first, to set how OpenMP's threads wait before torch is loaded

# isort: split
import datasets
from launch.console import errors
from launch.console.flags import parse
from launch.console.terminal import say
from launch.machine import distributed
from launch.results import explorer
from launch.results.run import RunFlags


@dataclass(frozen=True, kw_only=True)
class ExploreConfig(RunFlags):
    """Settings of the explorer."""

    split: str = "test"
    """Split of the images that can be edited: train, valid or test."""
    images: int = 64
    """Number of images, evenly spread over the split; principal axes are computed from them."""
    axes: int = 4
    """Number of principal axes of each group of a hierarchy."""
    port: int = 8008
    """Port on 127.0.0.1; 0 takes a free one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.images < 2 or self.axes < 1:
            raise ValueError(f"--images {self.images} --axes {self.axes}; give at least 2 images and 1 axis")


def main(arguments: list[str]) -> None:
    """Parse, open the run, serve the page until Ctrl-C."""
    config = parse(ExploreConfig, None, arguments, prog="explore.py", description=__doc__ or "")
    ranks = distributed.start(config.device)
    run = config.open(ranks.device)
    data = run.data(config.split)
    rows = datasets.choose_rows(len(data), config.images)
    images = datasets.to_float(data.images(rows), data.spec, ranks.device)
    with explorer.server(explorer.Explorer(run.model, images, run.title, config.axes), config.port) as served:
        say(f"{run.title}: open http://{explorer.HOST}:{served.server_address[1]} (Ctrl-C ends it)")
        served.serve_forever()


if __name__ == "__main__":
    errors.main(main)
