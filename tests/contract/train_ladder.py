"""Train a ladder VAE.

Example:
  python launch/train_ladder.py --dataset dsprites --dsprites-source rendered --preset tiny
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors, flags
from launch.results.encoding import cheap_scores
from launch.training import start
from tests.contract import ladder_family


def main(arguments: list[str]) -> None:
    """Parse the flags and train."""
    typed = flags.typed(arguments)
    preset, defaults = ladder_family.FAMILY.recipe(typed.others)
    described = flags.describe_presets(__doc__ or "", ladder_family.LADDER_PRESETS)
    kind = ladder_family.LadderTrainConfig
    config = flags.parse(kind, defaults, typed.others, prog="train_ladder.py", description=described)
    start.train(config, preset, dry_run=typed.dry_run, score=cheap_scores)


if __name__ == "__main__":
    errors.main(main)
