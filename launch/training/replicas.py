"""Replicas: several runs trained as one batched model, with one optimiser step for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from datasets import to_float
from launch.training import optim
from launch.training.optim import Verdict
from launch.training.step import StepReport, Trainer, TrainState, mean_loss
from metrics.objective import Loss

Batch = Callable[[Sequence[Any], Sequence[Any]], Any]


class ReplicaState(TrainState):
    """Training state whose weights are slices of a stack; saving a slice as it is would write the whole stack."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data; each tensor owns its memory."""
        content = super().state_dict()
        return content | {"model": {name: value.clone() for name, value in content["model"].items()}}


class ReplicaTrainer:
    """A trainer of several runs at once, each by the rules of :class:`Trainer`.

    One optimiser moves the parameters of all runs. It shares its moments with each trainer's own optimiser, so every
    state is complete at any time. A step waits for the device once.

    Args:
        trainers: trainers of one process, whose configurations differ in seed, folder and weights of the objective.
        batch: builds one batched model from (models, objectives).
    """

    def __init__(self, trainers: Sequence[Trainer], batch: Batch) -> None:
        self.trainers = trainers
        first = trainers[0]
        self.config, self.ranks = first.config, first.ranks
        for trainer in trainers:
            trainer.state = ReplicaState(**vars(trainer.state))
        self.states = [trainer.state for trainer in trainers]
        models: list[Any] = [state.model for state in self.states]
        objectives: list[Any] = [state.objective for state in self.states]
        self.batched = batch(models, objectives)
        self.optimizer = optim.build(self.config.optim, [p for model in models for p in model.parameters()])
        for state in self.states:
            for parameter in state.model.parameters():
                self.optimizer.state[parameter] = state.optimizer.state[parameter]

    def noise(self) -> list[Tensor]:
        """Noise of the coming step, [N, B, ...], different for each run."""
        return [torch.stack(parts) for parts in zip(*(trainer.noise() for trainer in self.trainers), strict=True)]

    def _accumulate(self, x: Tensor) -> Loss:
        """Backpropagate the step's batches [N, A * B, ...]; return their mean losses, one per run."""
        count, size, all_noise = self.config.optim.accumulation, self.config.run.batch_size, self.noise()
        losses = []
        for rows in [slice(i * size, (i + 1) * size) for i in range(count)]:
            with self.trainers[0].autocast():
                loss = self.batched(x[:, rows], self.states[0].step, [n[:, rows] for n in all_noise])
            (loss.total.sum() / count).backward()
            losses.append(loss)
        return mean_loss(losses)

    def train_step(self, images: Tensor, stop: bool = False) -> list[StepReport]:
        """Take one step of every run on uint8 images [N * A * B, C, H, W]: A batches of B for each run in turn."""
        state, config = self.states[0], self.config.optim
        lr = optim.learning_rate(config, state.step, self.trainers[0].total_steps)
        x = to_float(images, state.model.spec, self.ranks.device).unflatten(0, (len(self.states), -1))
        loss = self._accumulate(x)
        norms = self.batched.grad_norms()
        too_long = norms > (config.grad_skip or math.inf)
        flags = torch.stack([~loss.total.isfinite(), ~norms.isfinite(), too_long, torch.zeros_like(too_long)], dim=1)
        verdicts = [Verdict(row) for row in flags.float().cpu()]
        terms = loss.terms | {"loss": loss.total}
        rows = [
            dict(zip(terms, values, strict=True)) for values in zip(*(v.unbind() for v in terms.values()), strict=True)
        ]
        reports = [
            StepReport(state.step, row, kl, norm, lr, verdict)
            for row, kl, norm, verdict in zip(rows, loss.kl_per_group, norms, verdicts, strict=True)
        ]
        for each, report in zip(self.states, reports, strict=True):
            report.stop = stop
            # on its own, a run that diverged would have ended
            each.settle(report, is_lost=each.num_bad_in_a_row >= self.config.run.max_bad_steps)
        self._move(lr, norms, [report.skipped for report in reports])
        return reports

    def _move(self, lr: float, norms: Tensor, skipped: list[bool]) -> None:
        """Clip each run's gradient, then step the weights of all runs that do not skip."""
        if self.config.optim.grad_clip > 0:
            self.batched.scale_gradients((self.config.optim.grad_clip / (norms + 1e-6)).clamp(max=1.0))
        for optimizer in (self.optimizer, *(state.optimizer for state in self.states)):
            for group in optimizer.param_groups:
                group["lr"] = lr
        with self.batched.holding(skipped):
            self.optimizer.step()
        self.batched.zero_grad()
        for state, is_skipped in zip(self.states, skipped, strict=True):
            if state.ema is not None and not is_skipped:
                state.ema.update(state.model, state.step)
            state.objective.after_step(is_skipped)
            state.step += 1
