"""Train a flat VAE: a beta-VAE or one of its relatives.

Examples:
  python launch/train_flat_vae.py --dataset dsprites --dsprites-source rendered --objective beta --beta 4
  python launch/train_flat_vae.py --dataset frey --data-root data/frey --max-steps 900
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from dataclasses import replace

from launch import cli, config, flat_presets, train
from launch.families import FlatTrainConfig


def main(arguments: list[str]) -> None:
    """Parse, then train."""
    dry_run = "--dry-run" in arguments
    arguments = [a for a in arguments if a != "--dry-run"]
    preset, defaults = flat_presets.flat_vae(arguments)
    listed = "\n".join(f"  {name:12}{p.summary}" for name, p in flat_presets.FLAT_PRESETS.items())
    described = (
        f"{__doc__}\nPresets:\n{listed}\n\nAlso --dry-run (say what would happen) and --debug (show tracebacks)."
    )
    chosen = config.parse(FlatTrainConfig, defaults, arguments, prog="train_flat_vae.py", description=described)
    train.train(_resolved(chosen), _resolved(preset), dry_run=dry_run)


def _resolved(config: FlatTrainConfig) -> FlatTrainConfig:
    """Every weight filled in, so that the record of a run says them all."""
    return replace(config, objective=config.objective.resolved())


if __name__ == "__main__":
    cli.main(main)
