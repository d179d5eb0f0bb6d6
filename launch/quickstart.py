"""A first result in minutes: sample a trained model, then train, score and compare a tiny NVAE and a flat beta-VAE.

Example:
  python launch/quickstart.py --out runs/quickstart
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors
from launch.console.flags import parse
from launch.console.terminal import say
from launch.machine import process
from launch.training.records import duration


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Settings of the quickstart."""

    out: Path = Path("runs/quickstart")
    """Folder of the runs and of the report."""
    steps: int = 250
    """Training steps of the NVAE, 16 images each."""
    flat_steps: int = 600
    """Training steps of the flat VAE, 32 images each."""
    images: int = 1000
    """Images that the scores are computed from."""

    def __post_init__(self) -> None:
        if min(self.steps, self.flat_steps) < 1 or self.images < 8:
            raise ValueError("--steps and --flat-steps must be 1 or more and --images 8 or more; change them")


def zoo_samples(config: QuickstartConfig) -> Path:
    """Path of the first picture, samples of a model that was trained for an hour and a half."""
    return config.out / "zoo-samples.png"


def commands(config: QuickstartConfig) -> list[tuple[str, list[str]]]:
    """Commands as a user would type them, each with its purpose."""
    nvae, flat = str(config.out / "nvae"), str(config.out / "flat")
    data = ["--dataset", "dsprites", "--dsprites-source", "rendered", "--preset", "tiny", "--resume", "auto"]
    quick = ["--final-eval-images", "256", "--iw-samples", "5"]
    scored = ["--images", str(config.images), "--elbo-images", "256", "--untrained"]
    return [
        (
            "Sample sprites from the trained NVAE that comes with the repository",
            ["launch/sample.py", "--run", "zoo/dsprites-nvae", "--num", "32", "--out", str(zoo_samples(config))],
        ),
        (
            "Train a tiny NVAE on rendered dSprites (the first time, rendering all 737,280 images takes some seconds)",
            ["launch/train_nvae.py", *data, *quick, *_length(config.steps), "--run-dir", nvae],
        ),
        (
            "Train a flat beta-VAE on the same images; both have a Bernoulli likelihood",
            [
                *("launch/train_flat_vae.py", *data, *quick, "--objective", "beta", "--beta", "4"),
                *(*_length(config.flat_steps), "--run-dir", flat),
            ],
        ),
        ("Score the NVAE's code: which groups encode the factors?", ["launch/score.py", "--run", nvae, *scored]),
        ("Score the flat code by the same reductions", ["launch/score.py", "--run", flat, *scored]),
        (
            "Compare them in one report",
            ["launch/compare.py", "--runs", nvae, flat, "--out", str(config.out / "report")],
        ),
    ]


def _length(steps: int) -> list[str]:
    """Flags for a run of ``steps`` steps, evaluated halfway and at the end."""
    return ["--max-steps", str(steps), "--eval-every", str(max(1, -(-steps // 2)))]


def main(arguments: list[str]) -> int:
    """Run the commands one after the other, showing each."""
    config = parse(QuickstartConfig, QuickstartConfig(), arguments, prog="quickstart.py", description=__doc__ or "")
    steps = commands(config)
    errors.stop_with_children()
    for number, (why, command) in enumerate(steps, start=1):
        for line in ("", f"[{number}/{len(steps)}] {why}", f"$ python {shlex.join(command)}"):
            say(line)
        started = time.monotonic()
        code = process.run([sys.executable, *command], cwd=errors.ROOT)
        if code:
            return code
        say(f"[{number}/{len(steps)}] took {duration(time.monotonic() - started)}")
    for line in (
        "",
        "What to look at (models trained for minutes show that everything works, not which model is better)",
        f"  {zoo_samples(config)}   samples after an hour and a half of training; the models here were trained for minutes",
        f"  {config.out / 'report' / 'report.html'}   open it in a browser; as Markdown: report.md",
        f"  {config.out / 'nvae' / 'figures'}   reconstructions, samples, KL per group",
        f"  {Path(sys.executable).parent}/tensorboard --logdir {config.out}",
        "What to type next",
        f"  python launch/sample.py --run {config.out / 'nvae'} --temperature 0.8",
        "  torchrun --standalone --nproc-per-node=gpu launch/train_nvae.py --dataset celeba --data-root FOLDER",
        "  python launch/train_nvae.py --help",
    ):
        say(line)
    return 0


if __name__ == "__main__":
    errors.main(main)
