"""Train a hierarchical VAE (NVAE).

Examples:
  torchrun --standalone --nproc-per-node=gpu launch/train_nvae.py --dataset celeba --data-root data/celeba
  python launch/train_nvae.py --dataset dsprites --dsprites-source rendered --preset tiny --max-steps 300
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors, flags
from launch.families import nvae
from launch.families.nvae import NVAETrainConfig
from launch.training import start


def main(arguments: list[str]) -> None:
    """Parse, then train."""
    dry_run = "--dry-run" in arguments
    arguments = [a for a in arguments if a != "--dry-run"]
    preset = nvae.recipe(*flags.typed_preset(arguments))
    listed = "\n".join(f"  {name:18}{p.summary}" for name, p in nvae.NVAE_PRESETS.items())
    described = (
        f"{__doc__}\nPresets:\n{listed}\n\nAlso --dry-run (say what would happen) and --debug (show tracebacks)."
    )
    chosen = flags.parse(NVAETrainConfig, preset, arguments, prog="train_nvae.py", description=described)
    start.train(chosen, preset, dry_run=dry_run)


if __name__ == "__main__":
    errors.main(main)
