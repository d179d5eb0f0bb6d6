"""Sections of gpu_check that measure the speed of one GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_results import Check
from benchmarks.steps import random_images, trainer_of
from datasets import ImageSpec
from flat_vae import Replicas
from launch.families.flat_vae import FLAT_PRESETS
from launch.families.nvae import NVAE_PRESETS
from launch.machine.execution import WARM_UP
from launch.training.memory import image_spec
from launch.training.replicas import ReplicaTrainer


def _burst(check: Check, step: Callable[[], object], num: int) -> float:
    """Seconds per step, over ``num`` steps without a wait between them."""
    step()
    check.wait()
    start = time.perf_counter()
    for _ in range(num):
        step()
    check.wait()
    return (time.perf_counter() - start) / num


def training_speed(check: Check) -> dict[str, Any]:
    """Measure seconds per step of the CelebA 64 recipe: plain, recorded, and with recomputed cells."""
    preset, sizes, num = ("celeba64", (16, 64), 20) if check.on_gpu else ("tiny", (2,), 2)
    found: dict[str, Any] = {"preset": preset}
    graphs = ("never", "always") if check.on_gpu else ("never",)
    cases = [(s, p, g, False) for s in sizes for p in ("fp32", "bf16") for g in graphs] + [
        (sizes[-1], "bf16", "never", True)
    ]
    for size, kind, graph, recomputed in cases:
        if time.monotonic() > check.deadline:
            found["left_out"] = "the time limit was reached"
            break
        config = NVAE_PRESETS[preset].build()
        run = replace(config.run, batch_size=size, precision=kind, cuda_graph=graph)
        config = replace(config, model=replace(config.model, checkpointing=recomputed), run=run)
        spec = image_spec(config)
        subject = trainer_of(config, spec, check.device)
        images = random_images(spec, size).to(check.device)
        for _ in range(WARM_UP + 1):
            subject.train_step(images)
        if check.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        name = f"{kind}, batch {size}" + (", recorded" * (graph == "always")) + (", recomputed" * recomputed)
        found[name] = {"seconds": _burst(check, lambda s=subject, i=images: s.train_step(i), num)}  # type: ignore[misc]
        if check.on_gpu:
            found[name]["peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
        del subject
        if check.on_gpu:
            torch.cuda.empty_cache()
    return found


def flat_speed(check: Check) -> dict[str, Any]:
    """Measure seconds per step of Burgess' network."""
    found = {}
    spec = ImageSpec(channels=1, height=64, width=64, num_bits=1)
    for size in (64, 1024) if check.on_gpu else (64,):
        config = FLAT_PRESETS["burgess"].build()
        config = replace(config, run=replace(config.run, batch_size=size))
        subject = trainer_of(config, spec, check.device)
        images = random_images(spec, size).to(check.device)
        found[f"batch {size}"] = _burst(check, lambda s=subject, i=images: s.train_step(i), 20 if check.on_gpu else 2)  # type: ignore[misc]
    return found


def convolution_layouts(check: Check) -> dict[str, Any]:
    """Measure both passes, in ms, of convolutions at which cuDNN may be slow: depthwise ones and widths not divisible by 8."""
    size, width, num = (16, 768, 20) if check.on_gpu else (2, 24, 1)
    cases = {f"depthwise 5x5, {width} channels": (width, width, 5, width)}
    cases |= {f"1x1, {n} channels": (n, n, 1, 1) for n in ((144, 148, 272, 276) if check.on_gpu else (20,))}
    found = {}
    for name, (inputs, outputs, kernel, groups) in cases.items():
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(size, inputs, 32, 32, device=check.device, dtype=dtype)
                x = x.contiguous(memory_format=layout).requires_grad_()
                weight = torch.randn(outputs, inputs // groups, kernel, kernel, device=check.device, dtype=dtype)
                weight = weight.contiguous(memory_format=layout).requires_grad_()
                seconds = _burst(check, lambda x=x, w=weight, k=kernel, g=groups: _both_passes(x, w, k, g), num)  # type: ignore[misc]
                found[f"{name}, {dtype}, {layout}".replace("torch.", "")] = round(seconds * 1e3, 4)
    return found


def _both_passes(x: Tensor, weight: Tensor, kernel: int, groups: int) -> None:
    y = F.conv2d(x, weight, padding=kernel // 2, groups=groups)
    torch.autograd.grad(y, (x, weight), torch.ones_like(y))


def replicas_speed(check: Check) -> dict[str, Any]:
    """Measure seconds per step of ten seeds of Burgess' network as one batched model, and of one seed."""
    count, size, num = (10, 64, 20) if check.on_gpu else (2, 8, 1)
    config = FLAT_PRESETS["burgess"].build()
    config = replace(config, run=replace(config.run, batch_size=size))
    spec = ImageSpec(channels=1, height=64, width=64, num_bits=1)
    one = trainer_of(config, spec, check.device)
    images = random_images(spec, size).to(check.device)
    found = {"one": _burst(check, lambda: one.train_step(images), num)}
    many = [trainer_of(config, spec, check.device) for _ in range(count)]
    together, repeated = ReplicaTrainer(many, Replicas), images.repeat(count, 1, 1, 1)
    return found | {f"{count} at once": _burst(check, lambda: together.train_step(repeated), num)}


def sampling_speed(check: Check) -> dict[str, Any]:
    """Measure seconds for a batch of samples and of reconstructions, in float32 as in the scripts."""
    preset, size, num = ("celeba64", 64, 3) if check.on_gpu else ("tiny", 2, 1)
    config = NVAE_PRESETS[preset].build()
    spec = image_spec(config)
    model = trainer_of(config, spec, check.device).state.model.eval()
    x = random_images(spec, size).to(check.device) / 255.0
    with torch.inference_mode():
        return {
            "preset": preset,
            "batch": size,
            "samples": _burst(check, lambda: model.sample(size), num),
            "reconstructions": _burst(check, lambda: model.reconstruct(x), num),
        }
