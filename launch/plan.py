"""Predict what a run will need: parameters, memory, the largest batch per GPU, hours.

Nothing is trained: the model is built on PyTorch's meta device. Hours need a measured throughput.

Examples:
  python launch/plan.py --preset celebahq256 --gpus 8 --gpu-memory-gib 80
  python launch/plan.py --preset celeba64 --gpus 8 --throughput results.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import launch  # noqa: F401  # first, to set how OpenMP's threads wait before torch is loaded

# isort: split
import datasets
from launch.console import errors
from launch.console.flags import parse
from launch.console.terminal import say
from launch.families import nvae
from launch.families.nvae import NVAETrainConfig
from launch.training import memory
from launch.training.memory import GIB


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Settings of a plan."""

    preset: str = "celeba64"
    """Recipe, see train_nvae.py --help."""
    gpus: int = 1
    """Number of processes, one per GPU."""
    gpu_memory_gib: float = 80.0
    """Memory of a GPU in GiB."""
    num_images: int | None = None
    """Number of training images per epoch; default the published number."""
    throughput: Path | None = None
    """JSON lines that benchmarks/run.py nvae-step --out wrote on such a GPU."""

    def __post_init__(self) -> None:
        if self.gpus < 1 or not self.gpu_memory_gib > 0:
            raise ValueError(
                f"--gpus {self.gpus}, --gpu-memory-gib {self.gpu_memory_gib}; give at least 1 GPU with more than 0 GiB"
            )


def plan(options: PlanConfig) -> Iterator[str]:
    """Yield the plan line by line."""
    config = nvae.FAMILY.preset(options.preset)
    spec = memory.image_spec(config)
    gflop = memory.gflop_per_image(config, spec)
    yield f"preset {config.preset}: images {spec.height}x{spec.width}x{spec.channels}, {spec.num_bits} bits"
    yield from _memory(options, config, spec)
    yield f"work   {gflop:,.1f} GFLOP per image, forward and backward"
    yield from _time(options, config, gflop)


def _memory(options: PlanConfig, config: NVAETrainConfig, spec: datasets.ImageSpec) -> Iterator[str]:
    """Yield parameters, memory and the largest batch, without and with recomputation of the cells."""
    needs = memory.count(memory.with_checkpointing(config, on=False), spec)
    yield (
        f"model  {needs.num_parameters / 1e6:.2f} M parameters; weights, gradients, optimiser and average "
        f"{needs.state_bytes / GIB:.1f} GiB"
    )
    recomputed = memory.count(memory.with_checkpointing(config), spec)
    for name, counted in (("without checkpointing", needs), ("with checkpointing", recomputed)):
        batch = memory.largest_batch(counted, options.gpu_memory_gib)
        yield (
            f"memory {name}: {counted.activation_bytes_per_image / 2**20:.0f} MiB per image in fp32; at most "
            f"{batch} images per GPU of {options.gpu_memory_gib:g} GiB, {batch * options.gpus} on {options.gpus}"
        )


def _time(options: PlanConfig, config: NVAETrainConfig, gflop: float) -> Iterator[str]:
    """Yield the hours of an epoch and of the run."""
    num_images = options.num_images or memory.num_training_images(config)
    if options.throughput is None:
        yield (
            "time   unknown without a measurement; give --throughput FILE, written on such a GPU by: "
            f"python benchmarks/run.py nvae-step --preset {config.preset} --out FILE"
        )
        return
    if not num_images:
        yield "time   unknown; give --num-images, the training images of an epoch"
        return
    speed = memory.throughput(options.throughput, config.preset, gflop)
    hours = num_images / (speed.images_per_s * options.gpus) / 3600.0
    yield (
        f"time   {hours:,.2f} hours per epoch of {num_images:,} images, {hours * config.run.epochs:,.0f} for "
        f"{config.run.epochs} epochs, assuming perfect scaling to {options.gpus} process(es)"
    )
    yield f"       {speed.images_per_s:,.2f} images/s per process, {speed.source}"


def main(arguments: list[str]) -> None:
    """Parse, count and print."""
    for line in plan(parse(PlanConfig, None, arguments, prog="plan.py", description=__doc__ or "")):
        say(line)


if __name__ == "__main__":
    errors.main(main, prints_result=True)
