"""Sections of gpu_check that verify results on one GPU and fail if they are wrong."""

from __future__ import annotations

import copy
import json
import os
import platform
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import harness
from benchmarks.steps import random_images, trainer_of
from datasets import ImageSpec
from launch.console.config import OptimConfig, RunConfig
from launch.families.nvae import NVAE_PRESETS, NVAETrainConfig
from launch.machine.execution import WARM_UP
from launch.training.step import Trainer
from nvae.batch_norm import BatchNorm

SPEC = ImageSpec(channels=3, height=16, width=16)
ROOT = Path(__file__).resolve().parents[1]


class NeedsGpu(Exception):
    """The section cannot run without a GPU."""


@dataclass
class Check:
    """Device and time limit of the sections.

    Args:
        device: the GPU, or the CPU.
        deadline: on the monotonic clock; timings that would pass it are left out.
    """

    device: torch.device
    deadline: float

    @property
    def on_gpu(self) -> bool:
        """True if there is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def trainer(self, **changes: Any) -> Trainer:
        """A trainer of the tiny NVAE with flows on 16 x 16 pixels."""
        model = replace(NVAE_PRESETS["tiny"].build().model, num_flows=1, cell_arch="res_mbconv")
        model = replace(model, checkpointing=changes.pop("checkpointing", False))
        names = {"precision": "fp32", "cuda_graph": "never", "batch_size": 4}
        run = RunConfig(**{name: changes.pop(name, default) for name, default in names.items()})
        config = NVAETrainConfig(model=model, optim=OptimConfig(**changes), run=run)
        return trainer_of(config, SPEC, self.device)


def _steps(subject: Trainer, num: int, first: int = 0) -> list[float]:
    """Take ``num`` steps on images that differ from step to step; return the losses."""
    count = subject.config.run.batch_size * subject.config.optim.accumulation
    images = random_images(subject.state.model.spec, count)
    losses = [subject.train_step(images.roll(first + i, -1)).terms["loss"] for i in range(num)]
    subject.settle()
    return [float(loss) for loss in losses]


def _weights(subject: Trainer) -> Tensor:
    return subject.flat.weights.values.double().cpu()


def machine(check: Check) -> dict[str, Any]:
    """Versions, and the machine's measured rates."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "cpus": os.cpu_count()}
    if check.on_gpu:
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found[f"matrix_rate_{name}"] = harness.matrix_rate(check.device, dtype)
    return found | {"bandwidth": harness.copy_bandwidth(check.device)}


def precision(check: Check) -> dict[str, Any]:
    """Compare the loss with that in float64 on a CPU, by the relative error; gradients must be finite."""
    reference = Check(torch.device("cpu"), check.deadline).trainer()
    start = copy.deepcopy(reference.state.model).state_dict()
    for part in (reference.state.model, reference.state.objective):
        part.double()
    expected = _loss(reference, torch.float64)
    found = {}
    limits = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2} if check.on_gpu else {"fp32": 1e-5, "bf16": 2e-2}
    for name, limit in limits.items():
        subject = check.trainer(precision=name)
        subject.state.model.load_state_dict(start)
        error = abs(_loss(subject, torch.float32) - expected) / abs(expected)
        assert error < limit, f"the loss in {name} is {error:.1e} off, more than {limit:.0e}"
        found[name] = error
    return found


def _loss(subject: Trainer, dtype: torch.dtype) -> float:
    """The loss of fixed images and noise."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(4, *shape, generator=generator) for shape in subject.state.objective.noise_shapes]
    device = subject.ranks.device
    x = random_images(SPEC, 4).to(device, dtype) / 255.0
    with subject.autocast():
        loss = subject.state.objective(subject.state.model, x, 100_000, [n.to(device, dtype) for n in noise])
    loss.total.backward()
    for parameter in subject.parameters:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    return float(loss.total.detach())


def skipping(check: Check) -> dict[str, Any]:
    """Check that a step that is not finite leaves no trace, and that no step makes the host wait."""
    subject = check.trainer(grad_clip=1.0)
    _steps(subject, 2)
    before = _weights(subject)
    drawn = subject.noise()
    drawn[-1][0, 0, 0, 0] = float("nan")
    subject.noise = lambda: drawn  # type: ignore[method-assign]
    _steps(subject, 1)
    assert torch.equal(_weights(subject), before), "a step that is not finite moved the weights"
    assert subject.state.num_skipped == 1, f"{subject.state.num_skipped} steps were counted as skipped"
    del subject.noise  # type: ignore[method-assign]
    images = random_images(SPEC, 4)
    images = images.pin_memory() if check.on_gpu else images
    with harness.waiting_for_the_device_is_an_error() if check.on_gpu else nullcontext():
        for _ in range(3):
            subject.train_step(images)
    subject.settle()
    assert subject.state.num_skipped == 1
    return {"waits": 0 if check.on_gpu else "cannot be observed without a GPU"}


def resuming(check: Check) -> dict[str, Any]:
    """Compare two runs of six steps, and one that is resumed after three, bit for bit."""
    runs = [check.trainer(precision="bf16"), check.trainer(precision="bf16")]
    losses = [_steps(run, 6) for run in runs]
    first = check.trainer(precision="bf16")
    _steps(first, 3)
    saved = copy.deepcopy(first.state.state_dict()) | {"step": first.state.step}
    resumed = check.trainer(precision="bf16")
    resumed.state.load_state_dict(saved)
    rest = _steps(resumed, 3, 3)
    found: dict[str, Any] = {
        "differ_between_equal_runs": _names_that_differ(*runs),
        "differ_after_resume": _names_that_differ(runs[0], resumed),
    }
    assert losses[0] == losses[1], f"two equal runs differ: {losses}, {found}"
    assert rest == losses[0][3:], f"a resumed run differs: {rest} for {losses[0][3:]}, {found}"
    assert not any(found.values()), found
    return found


def _names_that_differ(one: Trainer, other: Trainer) -> list[str]:
    ours, theirs = (run.state.state_dict()["model"] for run in (one, other))
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def recording(check: Check) -> dict[str, Any]:
    """Compare replayed steps with eager ones bit for bit."""
    if not check.on_gpu:
        raise NeedsGpu("CUDA graphs; an emulation is in tests/launch/test_captured.py")
    found = {}
    for name, changes in {
        "plain": {},
        "recomputed": {"checkpointing": True},
        "accumulated": {"accumulation": 2},
    }.items():
        eager, replayed = (check.trainer(precision="bf16", cuda_graph=g, **changes) for g in ("never", "always"))
        losses = [_steps(one, WARM_UP + 4) for one in (eager, replayed)]
        assert losses[0] == losses[1], f"{name}: replayed steps differ from eager ones: {losses}"
        found[name] = _names_that_differ(eager, replayed)
        assert not found[name], f"{name}: {found[name]}"
    return found


def between_ranks(check: Check) -> dict[str, Any]:
    """Compare a batch norm over two processes on this device with one process on the whole batch."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", check.device.type, "--rank"]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    error = max(json.loads(text.splitlines()[-1])["error"] for text in said)
    assert error < 1e-4, f"a batch norm over two ranks is {error:.1e} off"
    return {"largest_error": error}


def _norm_of(x: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """Output, gradient and running statistics of a batch norm, channels_last as in the models."""
    torch.manual_seed(0)
    norm = BatchNorm(x.shape[1], "silu").to(x.device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = norm(x)
    y.backward(upstream.contiguous(memory_format=torch.channels_last))
    assert x.grad is not None
    return y.detach(), x.grad, norm.running_mean, norm.running_var


def one_rank(rank: int, device: torch.device) -> None:
    """Normalise this process's half of the batch together with the other process, and the whole batch alone."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(8, 8, 6, 6, generator=generator).to(device) + i for i in (3.0, 0.0))
    alone = _norm_of(x, upstream)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = (slice(0, 4), slice(4, 8))[rank]
    mine = _norm_of(x[rows], upstream[rows])
    expected = (alone[0][rows], alone[1][rows], *alone[2:])
    error = max(float((a - b).abs().max()) for a, b in zip(mine, expected, strict=True))
    print(json.dumps({"error": error}), flush=True)
    dist.barrier()
    os._exit(0)
