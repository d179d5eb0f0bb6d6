"""An exponential moving average of a model's weights: what is evaluated and sampled."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """A copy of ``model`` whose parameters trail it.

    The decay is shorter at the start, min(decay, (1 + step) / (10 + step)), so that a run of a few hundred steps is
    averaged over its last tenth and not over its beginning. Buffers (batch-norm statistics) are taken as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def weight(self, step: int) -> float:
        """How far the average moves towards the weights after optimiser step ``step``, from 0 to 1."""
        return 1.0 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards ``model`` after optimiser step ``step``."""
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), self.weight(step))

    @torch.no_grad()
    def copy_buffers(self, model: nn.Module) -> None:
        """Take over ``model``'s batch-norm statistics; call before using the average."""
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
