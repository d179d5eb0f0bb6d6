"""Training steps: NVAE against a plain port of itself, the flat VAE against another project's trainer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import counting, harness
from benchmarks.harness import Case, Row
from benchmarks.plain import plain_model, plain_step
from datasets import ImageSpec, to_float
from launch.console.config import OptimConfig, RunConfig
from launch.families import family_of
from launch.families.nvae import NVAE_PRESETS, NVAETrainConfig
from launch.machine.distributed import Ranks
from launch.training.memory import image_spec
from launch.training.step import DTYPES, Trainer, new_state
from metrics.elbo import terms
from nvae import NVAE, NVAEConfig

TOTAL_STEPS = 1_000_000
AT_STEP = 100_000  # a third of the warm-up: balancing and every penalty are at work
CELEBA64 = ImageSpec(channels=3, height=64, width=64, num_bits=8)
CPU_SHAPE = NVAEConfig(groups_per_scale=(2, 2, 1), channels_enc=32, channels_dec=32)  # 7.65 M parameters


def nvae_config(model: NVAEConfig, batch_size: int, precision: str) -> NVAETrainConfig:
    """A training configuration without averaged weights, because the plain port has none."""
    run: Any = RunConfig(batch_size=batch_size, precision=precision)  # type: ignore[arg-type]
    return NVAETrainConfig(model=model, optim=OptimConfig(ema_decay=0.0), run=run)


def trainer_of(
    config: Any, spec: ImageSpec, device: torch.device, num_images: int = 100_000, ranks: Ranks | None = None
) -> Trainer:
    """Trainer that a training script would build; for one process by default."""
    family = family_of(config)
    torch.manual_seed(0)
    model = family.build_model(config, spec)
    model.to(device)
    objective = family.build_objective(config, model, TOTAL_STEPS, num_images)
    objective.to(device)
    state = new_state(model, objective, config, device)
    state.step = AT_STEP
    return Trainer(state, config, ranks or Ranks(0, 1, device), TOTAL_STEPS)


def random_images(spec: ImageSpec, num: int) -> Tensor:
    """Smooth random images, uint8 [num, C, H, W]: the same work as faces."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(num, spec.channels, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, (spec.height, spec.width), mode="bilinear")
    levels: Tensor = (smooth * (2**spec.num_bits - 1)).round()
    return levels.to(torch.uint8)


def _counts(trainer: Trainer, images: Tensor, step: Callable[[], object], device: torch.device) -> Row:
    """Operations, FLOPs, kept activations and peak memory of one step."""
    state, spec = trainer.state, trainer.state.model.spec
    x = to_float(images, spec, device)
    seen = counting.count(step)

    def forward() -> Tensor:
        with trainer.autocast():
            return terms(state.model(x), x).elbo.mean()

    kept = counting.saved_bytes(forward, list(state.model.parameters()))
    return {
        "operations": seen.operations,
        "gb_touched": seen.bytes / 1e9,
        "gflop": counting.step_flops(forward) / 1e9,
        "saved_mib_per_image": kept / harness.MIB / len(images),
        "peak_mib": harness.peak_memory_mib(step, device),
    }


def _plain_case(model: NVAE, config: NVAETrainConfig, images: Tensor, device: torch.device) -> Case:
    port = plain_model(model).train()
    take = plain_step(port, config.objective, 1e-3, AT_STEP, TOTAL_STEPS)
    x = to_float(images, model.spec, device)

    def step() -> Tensor:
        return take(to_float(images, model.spec, device))

    step()
    seen = counting.count(step)
    counts = {
        "operations": seen.operations,
        "gb_touched": seen.bytes / 1e9,
        "gflop": counting.step_flops(lambda: port(x)) / 1e9,
        "saved_mib_per_image": counting.saved_bytes(lambda: terms(port(x), x).elbo.mean(), list(port.parameters()))
        / harness.MIB
        / len(images),
        "peak_mib": harness.peak_memory_mib(step, device),
    }
    return Case("plain", step, len(images), counts)


def nvae_cases(options: argparse.Namespace, device: torch.device) -> list[Case]:
    """Our model in each requested precision, with checkpointing, and the plain port, all with the same initial weights."""
    model = CPU_SHAPE if options.preset is None else NVAE_PRESETS[options.preset].build().model
    model = replace(model, checkpointing=False)
    spec = CELEBA64 if options.preset is None else image_spec(NVAE_PRESETS[options.preset].build())
    images = random_images(spec, options.batch_size)
    cases = []
    wanted = [(p, p, False, False) for p in options.precision]
    if options.checkpointing:
        wanted += [(f"{p} checkpointing", p, True, False) for p in options.precision]
    if options.compile:
        wanted += [(f"{p} compiled", p, False, True) for p in options.precision]
    for name, precision, checkpointing, compiles in wanted:
        config = nvae_config(replace(model, checkpointing=checkpointing), options.batch_size, precision)
        trainer = trainer_of(config, spec, device)

        def step(trainer: Trainer = trainer) -> object:
            return trainer.train_step(images)

        start = time.perf_counter()
        if compiles:
            trainer.state.model.compile_parts()
        step()
        first = {"first_step_s": time.perf_counter() - start} if compiles else {}
        counts = _counts(trainer, images, step, device) | {"preset": options.preset} | first
        cases.append(Case(name, step, len(images), counts))
    if options.baseline == "plain":
        config = nvae_config(model, options.batch_size, "fp32")
        plain = trainer_of(config, spec, device).state.model
        assert isinstance(plain, NVAE)
        cases.append(_plain_case(plain, config, images, device))
    return cases


def with_rates(rows: list[Row], device: torch.device) -> list[Row]:
    """FLOP/s and bytes/s of each row as shares of what this machine reaches, in the precision that the row begins with."""
    bandwidth = harness.copy_bandwidth(device)
    kinds = {row["variant"].split(",")[0].split()[0] for row in rows if "gflop" in row}
    rates = {kind: harness.matrix_rate(device, DTYPES.get(kind, torch.float32)) for kind in kinds}
    for row in rows:
        if "gflop" in row:
            rate = rates[row["variant"].split(",")[0].split()[0]]
            row["share_of_matrix_rate"] = row["gflop"] * 1e9 / row["median_s"] / rate
        if "gb_touched" in row:
            row["share_of_bandwidth"] = row["gb_touched"] * 1e9 / row["median_s"] / bandwidth
    return rows


def nvae_step(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Whole optimiser steps of NVAE."""
    cases = nvae_cases(options, device)
    seconds = harness.interleave(cases, options.rounds, device)
    rows = [harness.timing_row("nvae-step", case, seconds[case.variant]) for case in cases]
    with_rates(rows, device)
    rows += [
        harness.ratio_row("nvae-step", case.variant, cases[-1].variant, seconds)
        for case in cases[:-1]
        if cases[-1].variant == "plain"
    ]
    return rows
