"""Train a hierarchical VAE (NVAE).

Examples:
  torchrun --standalone --nproc-per-node=gpu launch/train_nvae.py --dataset celeba --data-root data/celeba
  python launch/train_nvae.py --dataset dsprites --dsprites-source rendered --preset tiny --max-steps 300
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors
from launch.families import nvae
from launch.results.encoding import cheap_scores
from launch.training import start


def main(arguments: list[str]) -> None:
    """Parse the flags and train."""
    config, preset, dry_run = nvae.FAMILY.parse(arguments, __doc__ or "")
    start.train(config, preset, dry_run=dry_run, score=cheap_scores)


if __name__ == "__main__":
    errors.main(main)
