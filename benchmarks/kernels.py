"""Kernels that a training step launches on a GPU, by kind of work and with a modelled time, counted without a GPU.

python -m benchmarks.kernels --preset celeba64 --world 8
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks import fake_cuda
from datasets import ImageSpec
from launch.families import family_of
from launch.families.flat_vae import FLAT_PRESETS
from launch.families.nvae import NVAE_PRESETS
from launch.machine.distributed import Ranks
from launch.training.memory import image_spec
from launch.training.optim import Findings, Verdict
from launch.training.step import Trainer, new_state
from launch.training.vectors import FlatState, Vector
from nvae.cross_rank import equal_counts

TOTAL_STEPS, AT_STEP = 1_000_000, 100_000  # a third of the warm-up: balancing and every penalty are at work


class _Trainer(Trainer):
    """A trainer without the parts that need a real device: seeded noise and reading the verdict."""

    def noise(self) -> list[Tensor]:
        """Noise of the right shapes."""
        count = self.config.run.batch_size * self.config.optim.accumulation
        return [torch.empty(count, *shape, device=self.ranks.device) for shape in self.state.objective.noise_shapes]

    def settle(self) -> None:
        """Read nothing."""


def trainer_of(config: Any, spec: ImageSpec, world_size: int) -> _Trainer:
    """A trainer on fake CUDA tensors whose first, longer power iteration is over."""
    family = family_of(config)
    model = fake_cuda.on_meta(lambda: family.build_model(config, spec))
    fake_cuda.to_device(model)
    objective = family.build_objective(config, model, TOTAL_STEPS, 100_000)
    fake_cuda.to_device(objective)
    for module in (*objective.modules(), *model.modules()):
        if hasattr(module, "_settled"):
            module._settled = True
    config = replace(config, run=replace(config.run, cuda_graph="never"))
    state = new_state(model, objective, config, fake_cuda.DEVICE)
    state.step = AT_STEP
    return _Trainer(state, config, Ranks(0, world_size, fake_cuda.DEVICE), TOTAL_STEPS)


def record(config: Any, spec: ImageSpec, *, world_size: int = 1, watch: bool = False) -> fake_cuda.Recorder:
    """Record the kernel launches of one training step, for one rank of ``world_size`` in a fake process group."""
    if world_size > 1:
        dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    equal_counts.cache_clear()
    findings = Findings(bad_loss=False, bad_gradient=False, too_long=False, stop=False)
    try:
        with (
            fake_cuda.fake_cuda() as recorder,
            mock.patch.object(Verdict, "__init__", lambda self, flags: setattr(self, "flags", flags)),
            mock.patch.object(Verdict, "read", return_value=findings),
            mock.patch.object(Vector, "become"),  # fake tensors have no memory to share
            mock.patch.object(FlatState, "holds", True),
        ):
            trainer = trainer_of(config, spec, world_size)
            count = config.run.batch_size * config.optim.accumulation
            shape = (count, spec.channels, spec.height, spec.width)
            images = torch.empty(shape, dtype=torch.uint8, device=fake_cuda.DEVICE)
            with recorder:
                trainer.train_step(images)  # makes the optimiser's state
            for noted in (recorder.launches, recorder.layouts, recorder.waits):
                noted.clear()
            if watch:
                recorder.watch(trainer.state.model)
            with recorder:
                trainer.train_step(images)
        return recorder
    finally:
        equal_counts.cache_clear()  # its tensors are fake, so no later caller may get them
        if world_size > 1:
            dist.destroy_process_group()


def kind(launch: fake_cuda.Launch) -> str:
    """Kind of work that a launch belongs to."""
    name, where = launch.name, launch.where
    if name in ("convolution", "convolution_backward"):
        return "convolutions"
    if "batch_norm" in name or "silu" in name or where in ("BatchNorm", "_DeviceNormBackward", "_NormBackward"):
        return "batch norm and SiLU"
    if where in ("Cell", "_AddGatedBackward", "SqueezeExcite", "Linear"):
        return "squeeze-and-excitation, residual"
    if where in ("sum of gradients", "fitting gradients", "AccumulateGrad"):
        return "sums of gradients"
    if name == "_to_copy" or name == "copy_":
        return "casts and copies"
    if where in ("_NormaliseBackward", "_SumOfSingularValuesBackward") or name in ("bmm", "linalg_vector_norm"):
        return "weights and penalties"
    if name.startswith("elu") or where in ("AutoregressiveCell", "FlowPair"):
        return "flows and ELU"
    if where == "none":
        return "optimiser, loss, stacks"
    return "latents and likelihood, " + ("backward" if where.endswith(("0", "1", "Backward")) else "forward")


def table(recorder: fake_cuda.Recorder) -> list[dict[str, Any]]:
    """Kernels and modelled milliseconds by kind, most kernels first."""
    kernels: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for launch in recorder.launches:
        kernels[kind(launch)] += launch.kernels
        seconds[kind(launch)] += launch.seconds
    return [{"kind": k, "kernels": n, "modelled_ms": round(seconds[k] * 1e3, 2)} for k, n in kernels.most_common()]


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="celeba64", choices=[*NVAE_PRESETS, *FLAT_PRESETS])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--world", type=int, default=1, help="ranks")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true", help="recompute cells (NVAE)")
    parser.add_argument("--operations", type=int, default=0, help="number of operations to print by module")
    o = parser.parse_args()
    config = ({**FLAT_PRESETS, **NVAE_PRESETS})[o.preset].build()
    run = replace(config.run, batch_size=o.batch_size, precision=o.precision)
    config = replace(config, run=run, optim=replace(config.optim, accumulation=o.accumulation))
    if o.checkpointing:
        config = replace(config, model=replace(config.model, checkpointing=True))
    spec = image_spec(config) if o.preset in NVAE_PRESETS else ImageSpec(channels=1, height=64, width=64, num_bits=1)
    recorder = record(config, spec, world_size=o.world, watch=True)
    seconds = sum(launch.seconds for launch in recorder.launches)
    print(json.dumps({**vars(o), "kernels": recorder.kernels, "modelled_ms": round(seconds * 1e3, 1)}))
    for row in table(recorder):
        print(json.dumps(row))
    print(json.dumps({"waits": recorder.waits, "not_channels_last": recorder.layouts}))
    by_module: Counter[tuple[str, str]] = Counter()
    for launch in recorder.launches:
        by_module[launch.where, launch.name] += launch.kernels
    for (where, name), count in by_module.most_common(o.operations):
        print(json.dumps({"where": where, "operation": name, "kernels": count}))


if __name__ == "__main__":
    main()
