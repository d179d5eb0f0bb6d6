"""Training steps of the flat VAE on dSprites: alone, many at once, beside another project's trainer on the same images."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

import datasets
from benchmarks import counting, harness
from benchmarks.harness import Case, Row
from benchmarks.steps import trainer_of, with_rates
from datasets.arrays import ArrayDataset
from datasets.dsprites import FACTOR_SIZES, render
from flat_vae import Replicas
from launch.console.config import RunConfig
from launch.families.flat_vae import FLAT_PRESETS, FlatTrainConfig
from launch.training import loop
from launch.training.loop import Orders
from launch.training.replicas import ReplicaTrainer
from launch.training.step import Trainer

STEPS_PER_ROUND = 20


class Worker:
    """pythae in a separate process, which trains one epoch per request."""

    def __init__(self, python: str, images: Path, batch_size: int) -> None:
        script = Path(__file__).with_name("pythae_worker.py")
        command = [python, str(script), str(images), str(batch_size), str(torch.get_num_threads())]
        quiet = os.environ | {"TQDM_DISABLE": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)
        self.losses: list[float] = []
        self._answer()

    def _answer(self) -> Row:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: Row = json.loads(line)
                return answer
        raise ValueError("the pythae worker ended early; run benchmarks/pythae_worker.py by hand to see why")

    def epoch(self) -> None:
        """Train one epoch."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.losses.append(float(self._answer()["loss"]))

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def sprites(num: int) -> Tensor:
    """Random rendered dSprites, uint8 {0, 1} [N, 1, 64, 64]."""
    random = np.random.default_rng(0)
    classes = np.stack([random.integers(0, size, num) for size in FACTOR_SIZES], axis=1)
    return torch.from_numpy(render(classes)[:, None])


class Ours:
    """Train with our trainer and loader, one epoch per call."""

    def __init__(self, images: Tensor, batch_size: int, precision: str, device: torch.device, seed: int = 0) -> None:
        preset: FlatTrainConfig = FLAT_PRESETS["burgess"].build()
        run = RunConfig(batch_size=batch_size, precision=precision, seed=seed)  # type: ignore[arg-type]
        model = replace(preset.model, init="torch")  # pythae's, so that losses compare too
        config = FlatTrainConfig(model=model, objective=preset.objective, run=run)
        self.data = ArrayDataset(
            name="sprites", array=images.numpy() * np.uint8(255), rows=np.arange(len(images)), num_bits=1, recipe={}
        )
        self.trainer: Trainer = trainer_of(config, _spec(), device, len(images))
        self.kept = loop.keep_on_device(run, self.data, device)  # once, as in a run
        self.order = datasets.Batches(len(images), batch_size, seed)
        self.images = images[:batch_size]
        self.losses: list[float] = []
        self.trainer.state.step = 0

    def step(self) -> object:
        """One step on the first batch."""
        return self.trainer.train_step(self.images)

    def forward(self) -> object:
        """The forward pass on the first batch."""
        return self.trainer.state.model(self.images.to(self.trainer.ranks.device).float())

    def epoch(self) -> None:
        """Train one epoch."""
        losses = []
        device = self.trainer.ranks.device
        start = self.trainer.state.step
        with datasets.Loader(
            self.data, self.order, start, STEPS_PER_ROUND, pin_memory=device.type == "cuda", resident=self.kept
        ) as batches:
            for batch in batches:
                losses.append(self.trainer.train_step(batch.on(device)).terms["loss"])
        self.losses.append(float(torch.stack(losses).mean()))


class Together:
    """Several of our models, with different seeds, as one batched model."""

    def __init__(self, ours: Sequence[Ours]) -> None:
        self.trainer = ReplicaTrainer([each.trainer for each in ours], Replicas)
        self.order = Orders([each.order for each in ours])
        self.data, self.kept, self.device = ours[0].data, ours[0].kept, ours[0].trainer.ranks.device
        self.images = torch.cat([each.images for each in ours])

    def step(self) -> object:
        """One step on the first batch of each."""
        return self.trainer.train_step(self.images)

    def epoch(self) -> None:
        """Train one epoch of each."""
        start = self.trainer.states[0].step
        with datasets.Loader(
            self.data, self.order, start, STEPS_PER_ROUND, pin_memory=self.device.type == "cuda", resident=self.kept
        ) as batches:
            for batch in batches:
                self.trainer.train_step(batch.on(self.device))


def _spec() -> datasets.ImageSpec:
    return datasets.ImageSpec(channels=1, height=64, width=64, num_bits=1)


def _together(images: Tensor, precision: str, device: torch.device, options: argparse.Namespace) -> Case:
    """All replicas at once, an epoch of each."""
    ours = [Ours(images, options.batch_size, precision, device, seed) for seed in range(options.replicas)]
    together = Together(ours)
    together.step()
    counts = {"operations": counting.count(together.step).operations, "batch": options.batch_size}
    return Case(f"{precision}, {options.replicas} at once", together.epoch, options.replicas * len(images), counts)


def flat_step(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Epochs of a few batches, data loading included; images already decoded on both sides."""
    images = sprites(STEPS_PER_ROUND * options.batch_size)
    ours = {precision: Ours(images, options.batch_size, precision, device) for precision in options.precision}
    cases, losses = [], {precision: each.losses for precision, each in ours.items()}
    for precision, each in ours.items():
        each.step()
        counts = {
            "gflop": counting.step_flops(each.forward) * STEPS_PER_ROUND / 1e9,
            "operations": counting.count(each.step).operations,
            "batch": options.batch_size,
        }
        each.trainer.state.step = 0
        cases.append(Case(precision, each.epoch, len(images), counts))
    together = {p: _together(images, p, device, options) for p in ours} if options.replicas > 1 else {}
    cases += together.values()
    with contextlib.ExitStack() as stack:
        if options.pythae_python is not None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "images.npy"
            np.save(path, images.numpy())
            worker = stack.enter_context(Worker(options.pythae_python, path, options.batch_size))
            losses["pythae"] = worker.losses
            cases.append(Case("pythae", worker.epoch, len(images), {"batch": options.batch_size}))
        seconds = harness.interleave(cases, options.rounds, device)
    for case in cases:
        if case.variant in losses:
            case.counts["loss_last_epoch"] = losses[case.variant][-1]
    rows = with_rates([harness.timing_row("flat-step", c, seconds[c.variant]) for c in cases], device)
    rows += [harness.ratio_row("flat-step", p, case.variant, seconds) for p, case in together.items()]
    return rows + [harness.ratio_row("flat-step", p, "pythae", seconds) for p in ours if "pythae" in seconds]
