"""Say before a run what it will need: parameters, memory, the largest batch of a card, hours; nothing is computed.

Examples:
  python launch/plan.py --preset celebahq256 --gpus 8 --gpu-memory-gib 80
  python launch/plan.py --preset celeba64 --gpus 8 --throughput results.jsonl
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch.utils.flop_counter import FlopCounterMode

import datasets
from launch.console import errors
from launch.console.flags import parse
from launch.families import family_of
from launch.families.family import choose
from launch.families.nvae import NVAE_PRESETS, NVAETrainConfig
from launch.results.cost import CostModel, count_work
from launch.training import memory
from launch.training.memory import GIB, StepMemory
from launch.training.model import as_module

HEADROOM = 0.9  # of a card's memory: work space of the convolutions and fragmentation take the rest
# data set: channels, height, width, bits, training images of the published recipe
PUBLISHED: dict[str, tuple[int, int, int, int, int]] = {
    "celeba": (3, 64, 64, 8, 162_770),
    "mnist": (1, 28, 28, 1, 60_000),
    "cifar10": (3, 32, 32, 8, 50_000),
    "frey": (1, 28, 20, 8, 1_415),
    "dsprites": (1, 64, 64, 1, 663_552),
    "folder": (3, 64, 64, 8, 0),
}
FOLDER_IMAGES = {"imagenet32": 1_281_147, "celebahq256": 27_000, "ffhq256": 63_000}


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What is planned."""

    preset: str = "celeba64"
    """Recipe, see train_nvae.py --help."""
    gpus: int = 1
    """Processes, one a card."""
    gpu_memory_gib: float = 80.0
    """Memory of a card."""
    num_images: int | None = None
    """Training images of an epoch; default the published number."""
    throughput: Path | None = None
    """JSON lines that benchmarks/run.py nvae-step --out (or scaling --out) wrote on such a card."""

    def __post_init__(self) -> None:
        if self.gpus < 1 or not self.gpu_memory_gib > 0:
            raise ValueError(
                f"--gpus {self.gpus}, --gpu-memory-gib {self.gpu_memory_gib}; give at least 1 and more than 0"
            )


def image_spec(config: NVAETrainConfig) -> datasets.ImageSpec:
    """The images that a recipe is for, without opening its data."""
    channels, height, width, num_bits, _ = PUBLISHED[config.data.dataset]
    if config.data.image_size is not None:
        height, width = config.data.image_size[0], config.data.image_size[-1]
    return datasets.ImageSpec(channels=channels, height=height, width=width, num_bits=config.data.num_bits or num_bits)


def num_training_images(config: NVAETrainConfig) -> int:
    """Of the published recipe; 0 where there is no such number."""
    recipe = config.preset.removesuffix("-1gpu")
    return FOLDER_IMAGES.get(recipe, PUBLISHED[config.data.dataset][-1])


def gflop_per_image(config: NVAETrainConfig, spec: datasets.ImageSpec) -> float:
    """Of a forward and a backward pass, counted on the meta device; recomputation left out.

    Three times the forward pass: torch's counter takes the weight gradient of a depthwise convolution for a dense one.
    """
    with torch.device("meta"):
        model = as_module(family_of(config).build_model(memory.without_checkpointing(config), spec)).train()
        with FlopCounterMode(display=False) as counter:
            x = torch.rand(2, spec.channels, spec.height, spec.width)
            model(x)
    return 3.0 * float(counter.get_total_flops()) / 2 / 1e9


# fitted to the seconds in docs/benchmarks/2026-11-21-performance.md (python benchmarks/run.py scaling --rounds 3), median
# error 5 %, largest 10 %
CPU_CORE = CostModel(
    seconds_per_operation=27.2e-6,
    seconds_per_gflop=11.2e-3,
    seconds_per_gb=88.3e-3,
    source="one core of an AMD EPYC, 2026-11-21",
)


@dataclass(frozen=True)
class Throughput:
    """Images per second of one process, and where the figure is from."""

    images_per_s: float
    source: str


def _newest(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    found = [row for row in rows if row.get("preset") == name]
    return max(found, key=lambda row: float(row["images_per_s"]), default=None)


def modelled(model: CostModel, config: NVAETrainConfig) -> Throughput:
    """From operations, FLOPs and bytes of this recipe's step."""
    batch = config.run.batch_size
    seconds = model.seconds(count_work(config, image_spec(config), batch))
    return Throughput(
        batch / seconds, f"no measurement but a cost model, fp32, batch {batch}, fitted on {model.source}"
    )


def _fitted(rows: list[dict[str, Any]]) -> CostModel | None:
    """The newest cost model among a benchmark's lines."""
    found = [row for row in rows if row.get("variant") == "cost model"]
    if not found:
        return None
    row = found[-1]
    return CostModel(
        float(row["seconds_per_operation"]),
        float(row["seconds_per_gflop"]),
        float(row["seconds_per_gb"]),
        f"{row['hardware']}, {str(row['date'])[:10]}",
    )


def throughput(path: Path, config: NVAETrainConfig, gflop: float) -> Throughput:
    """From a benchmark's lines: the best of this recipe, else another's best FLOP rate over this recipe's FLOPs.

    Where there are only lines of the growth table, by the cost model that was fitted to it.

    Raises:
        ValueError: no file, or no line of nvae-step or scaling in it.
    """
    command = f"measure: python benchmarks/run.py nvae-step --preset {config.preset} --out {path}"
    if not path.is_file():
        raise ValueError(f"there is no {path}; {command}")
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    rows = [
        row for row in lines if row.get("benchmark") == "nvae-step" and "gflop" in row and row["variant"] != "plain"
    ]
    fitted = _fitted(lines)
    if not rows and fitted is not None:
        return modelled(fitted, config)
    if not rows:
        raise ValueError(f"{path} holds no training steps of NVAE; {command}")
    same = _newest(rows, config.preset)
    if same is not None:
        return Throughput(
            float(same["images_per_s"]), f"measured: {same['variant']}, batch {same['batch_size']}, {same['hardware']}"
        )
    best = max(rows, key=lambda row: float(row["gflop"]) / float(row["median_s"]))
    rate = float(best["gflop"]) / float(best["median_s"])
    return Throughput(
        rate / gflop,
        f"estimated from {rate:,.0f} GFLOP/s of {best.get('preset') or 'another shape'}, {best['variant']}, {best['hardware']}",
    )


def largest_batch(needs: StepMemory, memory_gib: float) -> int:
    """Images of a step that fit into a card, a tenth of it left free; 0 where none does."""
    free = HEADROOM * memory_gib * GIB - needs.state_bytes
    return max(0, int(free // needs.activation_bytes_per_image))


def plan(options: PlanConfig) -> list[str]:
    """The answer, line by line."""
    config = choose(NVAE_PRESETS, options.preset, None, {}, options.preset)
    spec = image_spec(config)
    lines = [f"preset {config.preset}: images {spec.height}x{spec.width}x{spec.channels}, {spec.num_bits} bits"]
    for name, chosen in (
        ("without checkpointing", memory.without_checkpointing(config)),
        ("with checkpointing", memory.with_checkpointing(config)),
    ):
        needs = memory.count(chosen, spec)
        if name == "without checkpointing":
            lines.append(
                f"model  {needs.num_parameters / 1e6:.2f} M parameters; weights, gradients, optimiser and average "
                f"{needs.state_bytes / GIB:.1f} GiB"
            )
        batch = largest_batch(needs, options.gpu_memory_gib)
        lines.append(
            f"memory {name}: {needs.activation_bytes_per_image / 2**20:.0f} MiB an image in fp32; at most "
            f"{batch} images a card of {options.gpu_memory_gib:g} GiB, {batch * options.gpus} on {options.gpus}"
        )
    gflop = gflop_per_image(config, spec)
    lines.append(f"work   {gflop:,.1f} GFLOP an image, forward and backward")
    return lines + _time(options, config, gflop)


def _time(options: PlanConfig, config: NVAETrainConfig, gflop: float) -> list[str]:
    """Hours of an epoch and of the run."""
    num_images = options.num_images or num_training_images(config)
    if not num_images:
        return ["time   unknown; give --num-images, the training images of an epoch"]
    if options.throughput is None:
        speed = modelled(CPU_CORE, config)
        return [
            f"time   {speed.images_per_s:,.2f} images/s on a CPU core: {speed.source}",
            "       for a card give --throughput FILE from benchmarks/run.py nvae-step --out FILE on such a card",
        ]
    speed = throughput(options.throughput, config, gflop)
    hours = num_images / (speed.images_per_s * options.gpus) / 3600.0
    return [
        f"time   {hours:,.2f} hours an epoch of {num_images:,} images, {hours * config.run.epochs:,.0f} for "
        f"{config.run.epochs} epochs, if {options.gpus} process(es) share without loss",
        f"       {speed.images_per_s:,.2f} images/s a process, {speed.source}",
    ]


def main(arguments: list[str]) -> None:
    """Parse, then print."""
    for line in plan(parse(PlanConfig, None, arguments, prog="plan.py", description=__doc__ or "")):
        print(line)


if __name__ == "__main__":
    errors.main(main)
