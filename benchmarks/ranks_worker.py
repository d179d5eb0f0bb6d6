"""A rank of `scaling`'s training on several processes: times steps, and rank 0 prints them as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks import harness, steps
from benchmarks.scaling import BASE, BATCH
from launch.machine import distributed, process

STEPS = 10


def main(precision: str, device: str, *options: str) -> None:
    """Warm up, then time steps that all ranks take together."""
    torch.set_num_threads(1)
    if "--default-allocator" not in options:
        process.keep_freed()
    with distributed.joined(device) as ranks:  # type: ignore[arg-type]
        config = steps.nvae_config(BASE, BATCH, precision)
        trainer = steps.trainer_of(config, steps.CELEBA64, ranks.device, ranks=ranks)
        images = steps.random_images(steps.CELEBA64, BATCH)
        seconds = []
        for number in range(STEPS + 3):
            harness.synchronise(ranks.device)
            ranks.barrier()
            start = time.perf_counter()
            trainer.train_step(images)
            harness.synchronise(ranks.device)
            if number >= 3:
                seconds.append(time.perf_counter() - start)
        if ranks.is_main:
            print(json.dumps({"seconds": seconds}), flush=True)
    distributed.leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
