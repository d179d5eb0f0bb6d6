"""The trainer: steps an explicit state with an objective, and knows no model and no data set."""

from __future__ import annotations

import contextlib
import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from launch import noise, optim
from launch.config import SharedConfig
from launch.distributed import Ranks
from launch.ema import ExponentialMovingAverage
from launch.evaluation import to_float
from launch.model import VAE, Objective
from launch.runs import as_module

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# torch 2.15 renamed DDP's switch for sending rank 0's buffers around before every forward pass.
_PARAMETERS = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False
}


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on ``device``."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


@dataclass
class TrainState:
    """Everything that training changes; what a checkpoint holds."""

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
            return as_module(self.model).eval()  # type: ignore[return-value]
        self.ema.copy_buffers(as_module(self.model))
        return self.ema.model  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data."""
        if self.ema is not None:
            self.ema.copy_buffers(as_module(self.model))
        return {
            "model": as_module(self.model).state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "objective": as_module(self.objective).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "num_skipped": self.num_skipped,
            "num_bad_in_a_row": self.num_bad_in_a_row,
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on from a checkpoint's content."""
        as_module(self.model).load_state_dict(content["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(content["ema"])
        as_module(self.objective).load_state_dict(content["objective"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.step, self.num_skipped = int(content["step"]), int(content["num_skipped"])
        self.num_bad_in_a_row = int(content["num_bad_in_a_row"])


@dataclass
class StepReport:
    """What one step says; tensors stay on the device until they are logged."""

    terms: dict[str, Tensor]
    kl_per_group: Tensor
    grad_norm: Tensor
    lr: float
    skipped: bool = False
    stop: bool = False
    notes: list[str] = field(default_factory=list)


class Trainer:
    """Takes optimiser steps on one rank.

    Args:
        state: what is trained.
        config: optimiser, batch, precision.
        ranks: this process among the others.
        total_steps: length that the schedules fit themselves into.
    """

    def __init__(self, state: TrainState, config: SharedConfig, ranks: Ranks, total_steps: int) -> None:
        self.state, self.config, self.ranks, self.total_steps = state, config, ranks, total_steps
        self.precision = resolve_precision(config.run.precision, ranks.device)
        self.parameters = list(as_module(state.model).parameters())
        self.statistics = [b for b in as_module(state.model).buffers() if b.is_floating_point()]
        self.forward: Any = state.model
        if ranks.world_size > 1:
            self.forward = DistributedDataParallel(
                as_module(state.model),
                device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **_SYNC_BUFFERS,  # batch-norm statistics are computed over all ranks, so they agree already
            )

    def noise(self) -> list[Tensor]:
        """Latent noise of the coming step for this rank's images."""
        source = noise.generator(self.ranks.device, noise.TRAIN, self.config.run.seed, self.state.step)
        local = self.config.run.batch_size * self.config.optim.accumulation
        shapes = self.state.objective.noise_shapes
        return noise.standard_normal(
            shapes, source, local=local, rank=self.ranks.rank, world_size=self.ranks.world_size
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision around the forward pass."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.ranks.device.type, dtype=dtype, enabled=dtype is not torch.float32)

    def _accumulate(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Backpropagate the step's batches; mean of their terms, KL per group, and loss."""
        count = self.config.optim.accumulation
        size = self.config.run.batch_size
        all_noise = self.noise()
        sums: dict[str, Tensor] = {}
        kl, total = torch.zeros((), device=x.device), torch.zeros((), device=x.device)
        for i in range(count):
            rows = slice(i * size, (i + 1) * size)
            last = i == count - 1
            waits = self.forward.no_sync() if self.ranks.world_size > 1 and not last else contextlib.nullcontext()
            with waits:
                with self.autocast():
                    loss = self.state.objective(self.forward, x[rows], self.state.step, [n[rows] for n in all_noise])
                self.state.scaler.scale(loss.total / count).backward()
            for name, value in loss.terms.items():
                sums[name] = sums.get(name, 0.0) + value / count
            kl, total = kl + loss.kl_per_group / count, total + loss.total.detach() / count
        return sums, kl, total

    def train_step(self, images: Tensor, *, stop: bool = False) -> StepReport:
        """One optimiser step on this rank's uint8 images [accumulation * batch, C, H, W], or a skipped one.

        The ranks agree before weights move: a loss or gradient that is not finite on one skips the step on all, and
        ``stop`` on one is reported on all.
        """
        state, config = self.state, self.config.optim
        as_module(state.model).train()
        lr = optim.learning_rate(config, state.step, self.total_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        x = to_float(images, state.model.spec, self.ranks.device)
        before = [b.clone() for b in self.statistics]
        terms, kl, total = self._accumulate(x)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        bad_loss = not math.isfinite(float(total))
        bad_grad = not math.isfinite(float(norm))
        too_long = config.grad_skip > 0 and float(norm) > config.grad_skip
        any_bad_loss, any_bad_grad, any_long, any_stop = (
            bool(v) for v in self.ranks.maximum(bad_loss, bad_grad, too_long, stop)
        )
        report = StepReport({**terms, "loss": total}, kl, norm, lr, stop=any_stop)
        self._apply(
            report, bad=any_bad_loss or any_bad_grad, overflow=any_bad_grad and not any_bad_loss, too_long=any_long
        )
        if report.skipped and before:  # a forward pass that is not finite has spoilt the batch-norm statistics
            torch._foreach_copy_(self.statistics, before)
        state.objective.after_step(report.skipped)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        return report

    def _apply(self, report: StepReport, *, bad: bool, overflow: bool, too_long: bool) -> None:
        """Move the weights, or skip: fp16 overflow shrinks the scale and is no error."""
        state, config = self.state, self.config.optim
        scaler_overflow = overflow and state.scaler.is_enabled()
        if bad or too_long:
            report.skipped = True
            state.num_skipped += 1
            if bad and not scaler_overflow:
                state.num_bad_in_a_row += 1
                report.notes.append(f"step {state.step}: loss or gradient not finite on some rank, step skipped")
        else:
            state.num_bad_in_a_row = 0
            if config.grad_clip > 0:
                nn.utils.clip_grads_with_norm_(self.parameters, config.grad_clip, report.grad_norm)
            state.scaler.step(state.optimizer)
            if state.ema is not None:
                state.ema.update(as_module(state.model), state.step)
        if state.scaler.is_enabled():
            # every rank shrinks or grows its scale alike: the gradients were averaged before anyone looked
            state.scaler.update(state.scaler.get_scale() * 0.5 if scaler_overflow else None)


def new_state(model: VAE, objective: Objective, config: SharedConfig, device: torch.device) -> TrainState:
    """A fresh state; the averaged copy starts at the weights."""
    precision = resolve_precision(config.run.precision, device)
    module = as_module(model)
    return TrainState(
        model=model,
        objective=objective,
        optimizer=optim.build(config.optim, module.parameters()),
        scaler=torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=precision == "fp16"),
        ema=ExponentialMovingAverage(module, config.optim.ema_decay) if config.optim.ema_decay else None,
    )
