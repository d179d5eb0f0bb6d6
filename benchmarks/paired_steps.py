"""Time training steps against an earlier commit of this project, step by step in turn.

    git worktree add /tmp/earlier 32c0d67
    OMP_NUM_THREADS=1 python -m benchmarks.paired_steps /tmp/earlier

Each tree has a process of its own, which sleeps while the other takes its step. A ratio is the median over rounds of the
ratios within a round, in CPU seconds, so that a shared machine hardly matters.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CASES = {  # batch size of each
    "NVAE, 7.65 M parameters, 64x64, fp32": 4,
    "NVAE, the same, recomputing activations": 4,
    "flat VAE, preset burgess, fp32": 64,
}


def trainer_and_images(case: str) -> tuple[Any, Any]:
    """Trainer and images of a case, built by the tree that this process was started in."""
    from benchmarks import steps
    from datasets import ImageSpec

    batch = CASES[case]
    if case.startswith("NVAE"):
        model = replace(steps.CPU_SHAPE, checkpointing="recomputing" in case)
        config = steps.nvae_config(model, batch, "fp32")
        return steps.trainer_of(config, steps.CELEBA64, steps.torch.device("cpu")), steps.random_images(
            steps.CELEBA64, batch
        )
    try:
        from launch.families.flat_vae import FLAT_PRESETS
    except ImportError:  # where it stood in the earlier commit
        from launch.flat_presets import FLAT_PRESETS  # type: ignore[import-not-found,no-redef]
    spec = ImageSpec(channels=1, height=64, width=64, num_bits=1)
    preset = FLAT_PRESETS["burgess"].build()
    config = replace(preset, run=replace(preset.run, batch_size=batch))
    return steps.trainer_of(config, spec, steps.torch.device("cpu")), steps.random_images(spec, batch)


def work(case: str) -> None:
    """Answer each line of standard input with the CPU seconds and the loss of one step."""
    import time

    import torch

    torch.set_num_threads(1)
    trainer, images = trainer_and_images(case)
    for _ in sys.stdin:
        start = time.process_time()
        trainer.train_step(images)
        print(time.process_time() - start, flush=True)


class Tree:
    """A process that takes steps of a case with the code of one tree."""

    def __init__(self, root: Path, case: str) -> None:
        command = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).resolve()), "--case", case, str(root)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=root, env=environment, stdin=pipe, stdout=pipe, text=True)

    def step(self) -> float:
        """CPU seconds of one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def seconds(roots: Sequence[Path], case: str, rounds: int) -> np.ndarray:
    """CPU seconds [rounds, trees], each round in another order; three first steps of each are not counted."""
    trees = [Tree(root, case) for root in roots]
    for tree in trees * 3:
        tree.step()
    times = np.zeros((rounds, len(trees)))
    for i in range(rounds):
        for j in np.roll(np.arange(len(trees)), i):
            times[i, j] = trees[j].step()
    for tree in trees:
        tree.close()
    return times


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("earlier", type=Path, help="a checkout of the earlier commit")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        work(options.case)
        return
    print("| step | batch | ours, CPU s | earlier / ours, median | quartiles |\n|---|--:|--:|--:|--:|")
    for case, batch in CASES.items():
        times = seconds([ROOT, options.earlier.resolve()], case, options.rounds)
        low, middle, high = np.quantile(times[:, 1] / times[:, 0], [0.25, 0.5, 0.75])
        print(
            f"| {case} | {batch} | {np.median(times[:, 0]):.3f} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
