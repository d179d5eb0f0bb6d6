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

from dataclasses import replace
from typing import TypeVar

from flat_vae import BETA_FORMS
from launch.console import errors, flags
from launch.families import flat_vae
from launch.families.flat_vae import FlatTrainConfig
from launch.training import start
from launch.training.replicas import ReplicatedTrainConfig, train_replicas

C = TypeVar("C", bound=FlatTrainConfig)


def main(arguments: list[str]) -> None:
    """Parse, then train."""
    dry_run = "--dry-run" in arguments
    arguments = [a for a in arguments if a != "--dry-run"]
    preset, defaults = flat_vae.recipe(arguments)
    listed = "\n".join(f"  {name:12}{p.summary}" for name, p in flat_vae.FLAT_PRESETS.items())
    described = (
        f"{__doc__}\nPresets:\n{listed}\n\nAlso --dry-run (say what would happen) and --debug (show tracebacks)."
    )
    shown = ReplicatedTrainConfig(**vars(defaults))
    chosen = flags.parse(ReplicatedTrainConfig, shown, arguments, prog="train_flat_vae.py", description=described)
    if not chosen.is_batched:
        return start.train(_resolved(chosen.single), _resolved(preset), dry_run=dry_run)
    for flag in [form.replace("_", "-") for form in BETA_FORMS]:
        if chosen.replica_betas and flags.typed_value(flag, arguments) is not None:
            raise ValueError(f"--{flag} and --replica-betas are forms of one weight; give one of them")
    train_replicas(_resolved(chosen), _resolved(preset), dry_run=dry_run)


def _resolved(config: C) -> C:
    """Every weight filled in, so that the record of a run says them all."""
    return replace(config, objective=config.objective.resolved())


if __name__ == "__main__":
    errors.main(main)
