"""The trainer: it steps an explicit state with an objective, and depends on no model or data set."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from datasets import to_float
from launch.console.config import SharedConfig
from launch.machine import noise
from launch.machine.distributed import Ranks
from launch.machine.execution import Captured
from launch.training import optim
from launch.training.optim import ExponentialMovingAverage, Verdict
from launch.training.vectors import FlatState
from metrics.model import VAE
from metrics.objective import Loss, Objective

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto" to the precision used on ``device``."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


@dataclass
class TrainState:
    """Everything that training changes, and that a checkpoint holds."""

    model: VAE
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ExponentialMovingAverage | None
    step: int = 0
    num_skipped: int = 0
    num_bad_in_a_row: int = 0

    @property
    def averaged(self) -> VAE:
        """The model to evaluate and sample, in eval mode: averaged weights if there are any."""
        if self.ema is None:
            return self.model.eval()
        self.ema.copy_buffers(self.model)
        return self.ema.model  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data."""
        if self.ema is not None:
            self.ema.copy_buffers(self.model)
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "num_skipped": self.num_skipped,
            "num_bad_in_a_row": self.num_bad_in_a_row,
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Load a checkpoint's content."""
        self.model.load_state_dict(content["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(content["ema"])
        self.objective.load_state_dict(content["objective"])
        optim.load_state_dict(self.optimizer, content["optimizer"])
        if content["scaler"]:  # empty after another precision
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.num_skipped = int(content["step"]), int(content["num_skipped"])
        self.num_bad_in_a_row = int(content["num_bad_in_a_row"])

    def settle(self, report: StepReport, *, is_lost: bool = False) -> None:
        """Count the findings of a step; if ``is_lost``, the run has diverged and the step counts as skipped only."""
        found = report.verdict.read()
        report.settled, report.skipped = True, found.skips or is_lost
        report.stop = report.stop or found.stop
        self.num_skipped += report.skipped
        if not report.skipped:
            self.num_bad_in_a_row = 0
        elif not is_lost and (found.bad_loss or (found.bad_gradient and not self._may_overflow())):
            self.num_bad_in_a_row += 1
            report.notes.append(f"step {report.step}: loss or gradient not finite on some rank, step skipped")

    def _may_overflow(self) -> bool:
        """True if an infinite gradient may be due to the loss scale of fp16, which then shrinks: it is no error."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0


@dataclass
class StepReport:
    """Report of one step; its tensors stay on the device until they are logged.

    ``skipped``, ``stop`` and ``notes`` are valid once the step is ``settled``: on a CPU at once, on a GPU one step
    later.
    """

    step: int
    terms: dict[str, Tensor]
    kl_per_group: Tensor
    grad_norm: Tensor
    lr: float
    verdict: Verdict
    settled: bool = False
    skipped: bool = False
    stop: bool = False
    notes: list[str] = field(default_factory=list)


class Outcome(NamedTuple):
    """Results of a step; all tensors are on the device."""

    terms: dict[str, Tensor]
    kl_per_group: Tensor
    grad_norm: Tensor
    flags: Tensor

    def copy(self) -> Outcome:
        """A copy in memory that no later step overwrites."""
        names = list(self.terms)
        values = torch.stack([self.terms[name] for name in names]).unbind(0)
        rest = (self.kl_per_group.clone(), self.grad_norm.clone(), self.flags.clone())
        return Outcome(dict(zip(names, values, strict=True)), *rest)


def mean_loss(losses: Sequence[Loss]) -> Loss:
    """Mean of the losses of a step's batches, detached."""
    if len(losses) == 1:
        return replace(losses[0], total=losses[0].total.detach())
    return Loss(
        torch.stack([loss.total.detach() for loss in losses]).mean(0),
        {name: torch.stack([loss.terms[name] for loss in losses]).mean(0) for name in losses[0].terms},
        torch.stack([loss.kl_per_group for loss in losses]).mean(0),
    )


class Trainer:
    """The trainer of one rank, which takes optimiser steps.

    The host prepares a step; the device then runs it without waiting for the host. The device decides whether to skip
    the step, and on a GPU the host counts skips one step later. All changing inputs are tensors, so a GPU can capture
    and replay the step.

    Args:
        state: state to train.
        config: settings of the optimiser, batch and precision.
        ranks: this process among the others.
        total_steps: length of the run, for the schedules.
    """

    def __init__(self, state: TrainState, config: SharedConfig, ranks: Ranks, total_steps: int) -> None:
        self.state, self.config, self.ranks, self.total_steps = state, config, ranks, total_steps
        self.precision = resolve_precision(config.run.precision, ranks.device)
        self.parameters = list(state.model.parameters())
        self.settles_late = ranks.device.type == "cuda"
        self.captured: Captured[Outcome] | None = Captured() if self._captures() else None
        self._flat: FlatState | None = None
        self._unsettled: StepReport | None = None
        self._lr, self._ema_weight, self._stop = (
            torch.zeros((), dtype=torch.float64, device=ranks.device) for _ in range(3)
        )
        self._images = torch.zeros(0, dtype=torch.uint8)
        self._noise: list[Tensor] = []

    def _captures(self) -> bool:
        """True if steps are captured and replayed.

        Raises:
            ValueError: requested without a GPU, or with compiled parts.
        """
        asked, on_gpu = self.config.run.cuda_graph, self.ranks.device.type == "cuda"
        if asked == "always" and (not on_gpu or self.config.run.compile):
            raise ValueError("--cuda-graph always needs a GPU and excludes --compile; leave it out")
        return asked != "never" and on_gpu and not self.config.run.compile

    @property
    def flat(self) -> FlatState:
        """The vectors that hold the state; built at the first step, and again after tensors were replaced."""
        state = self.state
        if self._flat is None or not self._flat.holds:
            average = None if state.ema is None else state.ema.model
            self._flat = FlatState(state.model, state.optimizer, average, self.ranks.world_size)
            if self.captured is not None:
                self.captured.forget()
        return self._flat

    def noise(self) -> list[Tensor]:
        """Latent noise of the coming step for this rank's images."""
        source = noise.generator(self.ranks.device, noise.TRAIN, self.config.run.seed, self.state.step)
        count, shapes, ranks = self.config.optim.accumulation, self.state.objective.noise_shapes, self.ranks
        local = self.config.run.batch_size * count
        return noise.standard_normal(
            shapes, source, local=local, rank=ranks.rank, world_size=ranks.world_size, accumulation=count
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision around the forward pass."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.ranks.device.type, dtype=dtype, enabled=dtype is not torch.float32)

    def _accumulate(self, x: Tensor, all_noise: list[Tensor]) -> Loss:
        """Accumulate the gradient of the step's batches; return their mean loss."""
        count, size = self.config.optim.accumulation, self.config.run.batch_size
        losses: list[Loss] = []
        with self.state.objective.one_step(count):
            for i in range(count):
                rows = slice(i * size, (i + 1) * size)
                with self.autocast():
                    loss = self.state.objective(
                        self.state.model, x[rows], self.state.step, [n[rows] for n in all_noise]
                    )
                self.state.scaler.scale(loss.total / count).backward()
                if i < count - 1:
                    self.flat.collect(first=i == 0)
                losses.append(loss)
        self.flat.collect(first=count == 1)
        return mean_loss(losses)

    def train_step(self, images: Tensor, *, stop: bool = False) -> StepReport:
        """Take or skip one optimiser step on this rank's uint8 images [accumulation * batch, C, H, W].

        The ranks agree before weights move: a non-finite loss or gradient on one skips the step on all, and ``stop`` on
        one is reported on all.
        """
        state = self.state
        state.model.train()
        lr = self._prepare(stop)
        path = state.objective.path(state.step)
        images, drawn = images.to(self.ranks.device, non_blocking=True), self.noise()
        if self.captured is not None and path is not None and self.flat.updates:
            self._fill(images, drawn)
            key = (path, tuple(images.shape))
            outcome = self.captured(key, lambda: self._compute(self._images, self._noise)).copy()
        else:
            outcome = self._compute(images, drawn)
        report = StepReport(
            state.step, outcome.terms, outcome.kl_per_group, outcome.grad_norm, lr, Verdict(outcome.flags)
        )
        state.objective.after_step(report.verdict.skips)
        state.step += 1
        if self.settles_late:
            self.settle()  # the step before this one
        self._unsettled = report
        if not self.settles_late:
            self.settle()
        return report

    def _prepare(self, stop: bool) -> float:
        """Copy everything that depends on the step to the device; return the learning rate."""
        state, config = self.state, self.config.optim
        lr = optim.learning_rate(config, state.step, self.total_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        self._lr.fill_(lr)
        self._ema_weight.fill_(0.0 if state.ema is None else state.ema.weight(state.step))
        self._stop.fill_(float(stop))
        state.objective.prepare(state.step)
        return lr

    def _fill(self, images: Tensor, drawn: list[Tensor]) -> None:
        """Copy a step's images and noise to the memory that a recording reads."""
        if self._images.shape != images.shape:
            self._images, self._noise = torch.empty_like(images), [torch.empty_like(n) for n in drawn]
            assert self.captured is not None
            self.captured.forget()
        self._images.copy_(images)
        for mine, new in zip(self._noise, drawn, strict=True):
            mine.copy_(new)

    def _compute(self, images: Tensor, drawn: list[Tensor]) -> Outcome:
        """The device's work: gradient, mean over the ranks, verdict, and a step that changes nothing if it is skipped."""
        state, flat, config = self.state, self.flat, self.config.optim
        x = to_float(images, state.model.spec, self.ranks.device)
        statistics = flat.statistics.values.clone()
        loss = self._accumulate(x, drawn)
        flat.average_over_ranks()
        self._unscale()
        norm = torch.linalg.vector_norm(flat.gradient)
        flags = self._judge(loss.total, norm)
        skips = flags[:3].any()
        if config.grad_clip > 0:
            flat.gradient.mul_((config.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        if flat.updates:
            flat.move(self._lr, (~skips).double(), None if state.ema is None else self._ema_weight)
        elif not skips:
            flat.move_by_optimizer(None if state.ema is None else float(self._ema_weight))
        # a non-finite forward pass has spoilt the batch-norm statistics
        flat.statistics.values.copy_(torch.where(skips, statistics, flat.statistics.values))
        state.scaler.update()  # equal on every rank, because the gradients were averaged first
        return Outcome({**loss.terms, "loss": loss.total}, loss.kl_per_group, norm, flags)

    def _unscale(self) -> None:
        """Divide the gradient by the loss scale, and tell the scaler if it is finite."""
        if self.state.scaler.is_enabled():
            parameter = torch.nn.Parameter(self.flat.weights.values, requires_grad=False)
            parameter.grad = self.flat.gradient
            self.state.scaler.unscale_(SimpleNamespace(param_groups=[{"params": [parameter]}]))  # type: ignore[arg-type]

    def _judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Judge the step over all ranks: 0 or 1 for each of :class:`Findings`, float32 [4]."""
        limit = self.config.optim.grad_skip or math.inf
        flags = torch.stack([~loss.isfinite(), ~norm.isfinite(), norm > limit, self._stop > 0.0]).float()
        if self.ranks.world_size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return flags

    def settle(self) -> None:
        """Count the findings of the newest step, so that the state's counters match its ``step``."""
        if self._unsettled is not None:
            self.state.settle(self._unsettled)
            self._unsettled = None


def new_state(model: VAE, objective: Objective, config: SharedConfig, device: torch.device) -> TrainState:
    """A fresh state; the averaged copy starts at the weights."""
    precision = resolve_precision(config.run.precision, device)
    return TrainState(
        model=model,
        objective=objective,
        optimizer=optim.build(config.optim, model.parameters()),
        scaler=torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=precision == "fp16"),
        ema=ExponentialMovingAverage(model, config.optim.ema_decay) if config.optim.ema_decay else None,
    )
