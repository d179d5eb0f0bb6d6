"""A trial of a run before it starts: whether a step fits into the memory of this machine, and how long a step takes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import datasets
from launch.console.config import SharedConfig
from launch.training import memory
from launch.training.loop import TakeStep
from launch.training.memory import GIB
from launch.training.records import duration

TIMED = 2  # steps, after one that is not timed
MOST_GFLOP = 60.0  # work of a timed step on a CPU: seconds on one core


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU or of this machine in bytes; None if the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def shortened(config: SharedConfig, spec: datasets.ImageSpec, device: torch.device) -> SharedConfig:
    """Return the configuration of a trial: on a CPU as few images a step as keep it short, and nothing compiled."""
    size = config.run.batch_size
    if device.type == "cpu":
        size = min(size, max(2, int(MOST_GFLOP / memory.gflop_per_image(config, spec))))
    run = replace(config.run, batch_size=size, compile=False, init_from=None)
    return replace(config, run=run, optim=replace(config.optim, accumulation=1))


def seconds_of_step(take_step: TakeStep, images: Tensor, device: torch.device) -> float:
    """Return the mean duration of :data:`TIMED` steps after a first one, in seconds."""
    take_step(images, False)
    _wait(device)
    started = time.monotonic()
    for _ in range(TIMED):
        take_step(images, False)
    _wait(device)
    return (time.monotonic() - started) / TIMED


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def needed_bytes(config: SharedConfig, spec: datasets.ImageSpec, members: int, device: torch.device) -> int:
    """Return a lower bound of the memory of a step: of all processes on this machine, or of one on its GPU."""
    needs = memory.count(config, spec)
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    return members * sharing * (needs.state_bytes + config.run.batch_size * needs.activation_bytes_per_image)


def fits(needed: int, free: int | None) -> bool:
    """True if the memory suffices with :data:`memory.HEADROOM`, or if nobody knows what is free."""
    return free is None or needed <= memory.HEADROOM * free


def says_memory(needed: int, free: int | None, device: torch.device) -> str:
    """Say whether the memory suffices, and what to do otherwise."""
    if free is None:
        return f"memory unknown: a step needs at least {needed / GIB:.1f} GiB, and the system does not say what is free"
    where = "GPU" if device.type == "cuda" else "machine"
    counted = f"needs at least {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB of this {where} are free"
    if fits(needed, free):
        return f"memory fits: a step {counted}"
    return f"memory does not fit: a step {counted}; give a smaller --batch-size with --accumulation, or a smaller model"


def says_time(seconds: float, timed_images: int, images: int, total_steps: int) -> str:
    """Say how long the run takes, from the duration of a step on ``timed_images`` of its ``images``."""
    step = seconds * images / timed_images
    how = f"mean of {TIMED} steps of {timed_images} images here" + (
        "" if timed_images == images else f", times {images / timed_images:g}"
    )
    return (
        f"time   {step:.2g} s a step (measured: {how}), so about {duration(step * total_steps)} for {total_steps:,} steps; "
        "evaluations and pictures come on top"
    )
