"""Train a flat VAE: a beta-VAE or one of its relatives.

Examples:
  python launch/train_flat_vae.py --dataset dsprites --dsprites-source rendered --objective beta --beta 4
  python launch/train_flat_vae.py --dataset frey --data-root data/frey --max-steps 900
  python launch/train_flat_vae.py --preset burgess --replicas 10        # ten seeds at once, a run folder for each
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors
from launch.families import flat_vae
from launch.results.encoding import cheap_scores
from launch.training import start


def main(arguments: list[str]) -> None:
    """Parse the flags and train."""
    config, preset, dry_run = flat_vae.FAMILY.parse(
        arguments,
        __doc__ or "",
        kind=flat_vae.ReplicatedTrainConfig,
        common=("objective", "beta", "latent_dim", "replicas"),
    )
    start.train(
        flat_vae.resolved(config.single),
        flat_vae.resolved(preset),
        members=config.members(arguments),
        dry_run=dry_run,
        score=cheap_scores,
    )


if __name__ == "__main__":
    errors.main(main)
