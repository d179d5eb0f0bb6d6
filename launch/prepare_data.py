"""Decode and check a data set before training.

Examples:
  python launch/prepare_data.py --dataset celeba --data-root data/celeba
  python launch/prepare_data.py --dataset dsprites --dsprites-source rendered
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import launch  # noqa: F401  # first, to set how OpenMP's threads wait before torch is loaded

# isort: split
import datasets
from launch.console import errors
from launch.console.config import DataConfig
from launch.console.flags import parse
from launch.console.terminal import say


def main(arguments: list[str]) -> None:
    """Parse, build or verify the cache, and list the splits."""
    config = parse(DataConfig, DataConfig(), arguments, prog="prepare_data.py", description=__doc__ or "")
    for split, data in datasets.prepare(config.dataset, config.data_root, **config.options()).items():
        spec = data.spec
        factors = f", {len(data.factor_names)} factors" if data.factor_names else ""
        say(
            f"{data.name:24}{split:8}{len(data):>9,} images "
            f"{spec.height}x{spec.width}x{spec.channels}, {spec.num_bits} bits{factors}"
        )
    if data.note:
        say(data.note)


if __name__ == "__main__":
    errors.main(main)
