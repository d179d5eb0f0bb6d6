"""A first result in minutes: train a tiny NVAE on dSprites drawn by rule, look at pictures, know what to type next.

Example:
  python launch/quickstart.py --out runs/quickstart
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch import cli
from launch.config import parse


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """How long, and where to."""

    out: Path = Path("runs/quickstart")
    """Folder of everything that this makes."""
    steps: int = 300
    """Training steps; 300 take about two minutes on two cores."""


def commands(config: QuickstartConfig) -> list[tuple[str, list[str]]]:
    """What a person would type, with a line that says why."""
    nvae = str(config.out / "nvae")
    train = "launch/train_nvae.py --dataset dsprites --dsprites-source rendered --preset tiny --resume auto"
    return [
        (
            "Train a tiny NVAE on dSprites, drawn by rule (the first time: half a minute to draw all 737,280 images)",
            [*train.split(), "--max-steps", str(config.steps), "--run-dir", nvae],
        ),
        (
            "Evaluate it on held-out images, beside a baseline without latents",
            ["launch/evaluate.py", "--run", nvae, "--images", "1000"],
        ),
        ("Draw samples from its prior", ["launch/sample.py", "--run", nvae, "--temperature", "0.8"]),
    ]


def main(arguments: list[str]) -> int:
    """Run the commands one after the other, showing each."""
    config = parse(QuickstartConfig, QuickstartConfig(), arguments, prog="quickstart.py", description=__doc__ or "")
    steps = commands(config)
    for number, (why, command) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {why}\n$ python {shlex.join(command)}", flush=True)
        code = subprocess.run([sys.executable, *command], cwd=cli.ROOT, check=False).returncode
        if code:
            return code
    figures = config.out / "nvae" / "figures"
    print(f"""
What to look at
  {figures}/reconstruction.png      originals above their reconstructions
  {figures}/kl_per_group.png        where in the hierarchy the information is
  {figures}/samples_t0.8_seed0.png  from the prior; after minutes of training do not expect much
  {Path(sys.executable).parent}/tensorboard --logdir {config.out}
What to type next
  torchrun --standalone --nproc-per-node=gpu launch/train_nvae.py --dataset celeba --data-root FOLDER
  python launch/train_nvae.py --help""")
    return 0


if __name__ == "__main__":
    cli.main(main)
