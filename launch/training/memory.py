"""Memory and duration of a training step, counted or measured by a trial."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

import datasets
from launch.console.config import SharedConfig
from launch.families import family_of
from launch.machine import files
from launch.training.records import duration
from metrics.elbo import terms
from metrics.model import VAE

GIB = 2.0**30
STATE_COPIES = 5  # weights, gradients, two moments of the optimiser, averaged weights; fp32


@dataclass(frozen=True)
class StepMemory:
    """Memory in bytes: a lower bound, because work space and fragmentation are not counted."""

    num_parameters: int
    state_bytes: int
    activation_bytes_per_image: int

    def step_gib(self, batch_size: int) -> float:
        """GiB of a step on ``batch_size`` images."""
        return (self.state_bytes + batch_size * self.activation_bytes_per_image) / GIB


def _storage(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, shared by its views; meta tensors have no address."""
    return int(tensor.untyped_storage()._cdata)


def _model(config: Any, spec: datasets.ImageSpec) -> VAE:
    """The model in training mode, without memory for its values."""
    with torch.device("meta"):
        return family_of(config).build_model(config, spec).train()


def _saved_bytes(model: VAE, batch_size: int) -> int:
    """Bytes that a forward pass saves for the backward pass besides parameters."""
    seen: dict[int, int] = {}
    parameters = {_storage(p) for p in model.parameters()}
    kept: list[Tensor] = []  # kept alive while counting, so that no storage's identity is reused

    def save(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in parameters and _storage(tensor) not in seen:
            kept.append(tensor)
            seen[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    spec = model.spec
    x = torch.rand(batch_size, spec.channels, spec.height, spec.width, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = terms(model(x), x).elbo.mean()
    del loss
    return sum(seen.values())


def _model_alone(config: Any) -> Any:
    """The default settings with this configuration's model, so that runs which differ only elsewhere share a cached count."""
    return type(config)(model=config.model)


def count(config: Any, spec: datasets.ImageSpec) -> StepMemory:
    """Count the memory of a training step in fp32; the share of an image is the difference between two batch sizes."""
    return _count(_model_alone(config), spec)


@functools.cache
def _count(config: Any, spec: datasets.ImageSpec) -> StepMemory:
    model = _model(config, spec)
    num_parameters = sum(p.numel() for p in model.parameters())
    two, three = _saved_bytes(model, 2), _saved_bytes(model, 3)
    return StepMemory(num_parameters, 4 * STATE_COPIES * num_parameters, three - two)


def check_batch_norm(config: Any, spec: datasets.ImageSpec) -> None:
    """Refuse a training batch in which a batch norm would see a single value, which has no variance.

    Raises:
        ValueError: the batch has one image and the coarsest scale one pixel.
    """
    try:
        _saved_bytes(_model(config, spec), 1)
    except ValueError as error:
        if "more than 1 value" not in str(error):
            raise
        raise ValueError(
            "--batch-size 1: a batch norm would see one value per channel, because the coarsest scale has one pixel; "
            "give --batch-size 2 or more, or fewer scales"
        ) from error


def with_checkpointing(config: Any, on: bool = True) -> Any:
    """The same configuration, with or without recomputing cells in the backward pass, which flat models never do."""
    if not hasattr(config.model, "checkpointing"):
        return config
    return replace(config, model=replace(config.model, checkpointing=on))


HEADROOM = 0.9  # usable share of a GPU's memory; work space of the convolutions and fragmentation take the rest
# data set, unopened: channels, height, width, bits, training images
DATA: dict[str, tuple[int, int, int, int, int]] = {
    "celeba": (3, 64, 64, 8, 162_770),
    "mnist": (1, 28, 28, 1, 60_000),
    "cifar10": (3, 32, 32, 8, 50_000),
    "frey": (1, 28, 20, 8, 1_415),
    "dsprites": (1, 64, 64, 1, 664_006),
    "folder": (3, 64, 64, 8, 0),
}
FOLDER_IMAGES = {"imagenet32": 1_281_147, "celebahq256": 27_000, "ffhq256": 63_000}


def image_spec(config: SharedConfig) -> datasets.ImageSpec:
    """Return the shape and bit depth of a recipe's images, without opening its data."""
    channels, height, width, num_bits, _ = DATA[config.data.dataset]
    if config.data.image_size is not None:
        height, width = config.data.image_size[0], config.data.image_size[-1]
    return datasets.ImageSpec(channels=channels, height=height, width=width, num_bits=config.data.num_bits or num_bits)


def num_training_images(config: SharedConfig) -> int:
    """Return the number of training images of the published recipe; 0 if none was published."""
    recipe = config.preset.removesuffix("-1gpu")
    return FOLDER_IMAGES.get(recipe, DATA[config.data.dataset][-1])


def gflop_per_image(config: SharedConfig, spec: datasets.ImageSpec) -> float:
    """Count the GFLOP of a forward and a backward pass on PyTorch's meta device; recomputation is left out.

    The result is three times that of the forward pass, because PyTorch's counter treats the weight gradient of a depthwise
    convolution as that of a dense one.
    """
    return _gflop_per_image(_model_alone(with_checkpointing(config, on=False)), spec)


@functools.cache
def _gflop_per_image(config: SharedConfig, spec: datasets.ImageSpec) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # loads Triton, which training need not wait for

    model = _model(config, spec)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model(torch.rand(2, spec.channels, spec.height, spec.width))
    return 3.0 * float(counter.get_total_flops()) / 2 / 1e9


def largest_batch(needs: StepMemory, memory_gib: float) -> int:
    """Return the largest batch that fits into a GPU with a tenth of its memory left free; 0 if none does."""
    free = HEADROOM * memory_gib * GIB - needs.state_bytes
    return max(0, int(free // needs.activation_bytes_per_image))


@dataclass(frozen=True)
class Throughput:
    """Images per second of one process, and how this number was obtained."""

    images_per_s: float
    source: str


def throughput(path: Path, preset: str, gflop: float) -> Throughput:
    """Read a measured throughput from the JSON lines of ``benchmarks/run.py nvae-step``.

    The fastest variant of the same recipe counts; without one, the best FLOP rate of any recipe is divided by this
    recipe's work.

    Args:
        path: file that the benchmark wrote with ``--out``.
        preset: recipe to plan for.
        gflop: work of one image, from :func:`gflop_per_image`.

    Raises:
        ValueError: the file is missing, or holds no training steps of NVAE.
    """
    command = f"measure: python benchmarks/run.py nvae-step --preset {preset} --out {path}"
    if not path.is_file():
        raise ValueError(f"there is no {path}; {command}")
    rows = files.read(path, _steps, remedy=command, limit=files.LARGEST_RECORD)
    if not rows:
        raise ValueError(f"{path} holds no training steps of NVAE; {command}")
    same = max((row for row in rows if row.get("preset") == preset), key=_images_per_s, default=None)
    if same is not None:
        source = f"measured: {same['variant']}, batch {same['batch_size']}, {same['hardware']}"
        return Throughput(_images_per_s(same), source)
    best = max(rows, key=_gflop_per_s)
    rate, shape = _gflop_per_s(best), best.get("preset") or "another shape"
    source = f"estimated from {rate:,.0f} GFLOP/s of {shape}, {best['variant']}, {best['hardware']}"
    return Throughput(rate / gflop, source)


def _steps(file: IO[bytes]) -> list[dict[str, Any]]:
    """The training steps of NVAE among a benchmark's lines, with every value that is used."""
    rows = [json.loads(line) for line in file if line.strip()]
    chosen = [r for r in rows if r.get("benchmark") == "nvae-step" and "gflop" in r and r["variant"] != "plain"]
    for row in chosen:
        if not (
            _gflop_per_s(row) > 0.0 and _images_per_s(row) > 0.0 and {"variant", "hardware", "batch_size"} <= row.keys()
        ):
            raise ValueError("a line has invalid values")
    return chosen


def _gflop_per_s(row: dict[str, Any]) -> float:
    return float(row["gflop"]) / float(row["median_s"])


def _images_per_s(row: dict[str, Any]) -> float:
    return float(row["images_per_s"])


# --- A trial of a run before it starts -----------------------------------------------------------------------------------

TIMED = 2  # steps, after a first one that is not timed
MOST_GFLOP = 60.0  # work of a timed step on a CPU: seconds on one core


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU or of this machine in bytes; None if the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def shortened(config: SharedConfig, spec: datasets.ImageSpec, device: torch.device) -> SharedConfig:
    """Return the configuration of a trial: without compilation, and on a CPU with few enough images to be short."""
    size = config.run.batch_size
    if device.type == "cpu":
        size = min(size, max(2, int(MOST_GFLOP / gflop_per_image(config, spec))))
    run = replace(config.run, batch_size=size, compile=False, init_from=None)
    return replace(config, run=run, optim=replace(config.optim, accumulation=1))


def seconds_of_step(take_step: Callable[[Tensor, bool], object], images: Tensor, device: torch.device) -> float:
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
    needs = count(config, spec)
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    return members * sharing * (needs.state_bytes + config.run.batch_size * needs.activation_bytes_per_image)


def fits(needed: int, free: int | None) -> bool:
    """True if the memory suffices with :data:`HEADROOM`, or if the free memory is unknown."""
    return free is None or needed <= HEADROOM * free


def says_memory(needed: int, free: int | None, device: torch.device) -> str:
    """Say whether the memory suffices, and what to do otherwise."""
    if free is None:
        return f"memory unknown: a step needs at least {needed / GIB:.1f} GiB, and the system does not report its free memory"
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
        f"time   {step:.2g} s per step (measured: {how}), so about {duration(step * total_steps)} for {total_steps:,} steps; "
        "evaluations and pictures are not included"
    )
