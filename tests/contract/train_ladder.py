"""Train a ladder VAE.

Example:
  python launch/train_ladder.py --dataset dsprites --dsprites-source rendered --preset tiny
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors
from launch.results.encoding import cheap_scores
from launch.training import start
from tests.contract import ladder_family


def main(arguments: list[str]) -> None:
    """Parse the flags and train."""
    config, preset, dry_run = ladder_family.FAMILY.parse(arguments, __doc__ or "")
    start.train(config, preset, dry_run=dry_run, score=cheap_scores)


if __name__ == "__main__":
    errors.main(main)
