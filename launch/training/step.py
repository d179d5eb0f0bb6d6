"""The trainer: steps an explicit state with an objective, and knows no model and no data set."""

from __future__ import annotations

import contextlib
import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets import to_float
from launch.console.config import SharedConfig
from launch.machine import noise
from launch.machine.distributed import Ranks
from launch.training import optim
from launch.training.ema import ExponentialMovingAverage
from launch.training.guard import Rollback, Verdict
from metrics.model import VAE
from metrics.objective import Objective

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
        """Go on from a checkpoint's content."""
        self.model.load_state_dict(content["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(content["ema"])
        self.objective.load_state_dict(content["objective"])
        optim.load_state_dict(self.optimizer, content["optimizer"])
        if content["scaler"]:  # empty after another precision
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.num_skipped = int(content["step"]), int(content["num_skipped"])
        self.num_bad_in_a_row = int(content["num_bad_in_a_row"])


@dataclass
class StepReport:
    """What one step says; tensors stay on the device until they are logged.

    ``skipped``, ``stop`` and ``notes`` are known once the step is ``settled``: on a CPU at once, on a GPU one step later.
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


class Trainer:
    """Takes optimiser steps on one rank.

    On a GPU nothing in a step asks the host: whether it is skipped is decided on the device, and counted when the next
    step is on its way. The state is the same as if it had been decided at once.

    Args:
        state: what is trained.
        config: optimiser, batch, precision.
        ranks: this process among the others.
        total_steps: length that the schedules fit themselves into.
    """

    def __init__(self, state: TrainState, config: SharedConfig, ranks: Ranks, total_steps: int) -> None:
        self.state, self.config, self.ranks, self.total_steps = state, config, ranks, total_steps
        self.precision = resolve_precision(config.run.precision, ranks.device)
        self.parameters = list(state.model.parameters())
        self.statistics = [b for b in state.model.buffers() if b.is_floating_point()]
        self.decides_on_device = ranks.device.type == "cuda"
        self._unsettled: StepReport | None = None
        self.forward: Any = state.model
        if ranks.world_size > 1:
            self.forward = DistributedDataParallel(
                state.model,
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
        state = self.state
        state.model.train()
        lr = optim.learning_rate(self.config.optim, state.step, self.total_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        x = to_float(images, state.model.spec, self.ranks.device)
        statistics = Rollback(self.statistics)
        terms, kl, total = self._accumulate(x)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        verdict = self._judge(total, norm, stop)
        report = StepReport(state.step, {**terms, "loss": total}, kl, norm, lr, verdict)
        skipped = self._move_unless(verdict, norm, statistics)
        state.scaler.update()  # alike on every rank: the gradients were averaged before anyone looked
        state.objective.after_step(skipped)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if self.decides_on_device:
            self.settle()  # the step before this one
        self._unsettled = report
        if not self.decides_on_device:
            self.settle()
        return report

    def _judge(self, loss: Tensor, norm: Tensor, stop: bool) -> Verdict:
        """What is wrong with the step on any rank."""
        limit = self.config.optim.grad_skip or math.inf
        asked = torch.full_like(loss, stop, dtype=torch.bool)
        flags = torch.stack([~loss.isfinite(), ~norm.isfinite(), norm > limit, asked]).float()
        if self.ranks.world_size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return Verdict(flags)

    def _move_unless(self, verdict: Verdict, norm: Tensor, statistics: Rollback) -> bool | Tensor:
        """Move the weights, or leave no trace of the step, in the batch-norm ``statistics`` either; whether it is skipped.

        An optimiser that has no state yet, or keeps some outside of tensors, has to wait for the verdict.
        """
        kept = optim.state_tensors(self.state.optimizer) if self.decides_on_device else None
        if kept is None:
            if not verdict.read().skips:
                self._move(norm)
                return False
            statistics.undo()  # a forward pass that is not finite has spoilt them
            return True
        averaged = self.state.ema.model.parameters() if self.state.ema else ()
        weights = Rollback([*self.parameters, *kept, *averaged])
        self._move(norm)
        skips = verdict.skips
        weights.undo_where(skips)
        statistics.undo_where(skips)
        return skips

    def _move(self, norm: Tensor) -> None:
        """Take the optimiser's step, and the average's."""
        state, config = self.state, self.config.optim
        if config.grad_clip > 0:
            nn.utils.clip_grads_with_norm_(self.parameters, config.grad_clip, norm)
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update(state.model, state.step)

    def settle(self) -> None:
        """Count what was found in the newest step; afterwards the state's counters are those of its ``step``."""
        report, self._unsettled = self._unsettled, None
        if report is None:
            return
        state, found = self.state, report.verdict.read()
        report.settled, report.skipped, report.stop = True, found.skips, found.stop
        state.num_skipped += found.skips
        overflows = state.scaler.is_enabled()  # in fp16 an infinite gradient shrinks the scale and is no error
        if not found.skips:
            state.num_bad_in_a_row = 0
        elif found.bad_loss or (found.bad_gradient and not overflows):
            state.num_bad_in_a_row += 1
            report.notes.append(f"step {report.step}: loss or gradient not finite on some rank, step skipped")


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
