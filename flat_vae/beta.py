"""Objectives that weight the rate: beta-VAE, and the controlled capacity of Burgess et al. 2018."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flat_vae.base import FlatObjective, loss_of, ramp
from flat_vae.model import FlatVAE
from metrics.elbo import terms
from metrics.objective import Loss


class BetaVAE(FlatObjective):
    """distortion + beta * rate (Higgins et al. 2017); with beta = 1 the VAE (Kingma & Welling 2013).

    Args:
        model: the bare model.
        beta: weight of the rate in nats.
        warmup_steps: steps over which beta rises linearly from 0.
    """

    batched = ("beta",)

    def __init__(self, model: FlatVAE, beta: float = 1.0, warmup_steps: float = 0.0) -> None:
        super().__init__(model)
        self.beta, self.warmup_steps = beta, warmup_steps

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]`` at an optimiser step."""
        beta = self.beta * ramp(step, self.warmup_steps)
        parts = terms(model(x, self.drawn(x, noise)), x)
        total = (parts.distortion + beta * parts.rate).mean()
        return loss_of(total, parts.distortion, parts.rate, beta=beta)


class CapacityVAE(FlatObjective):
    """distortion + gamma * |rate - C(step)| (Burgess et al. 2018); the batch mean of the rate is compared.

    Args:
        model: the bare model.
        capacity: C at the end of its rise, nats.
        gamma: weight of the difference.
        warmup_steps: steps over which C rises linearly from 0.
    """

    batched = ("capacity", "gamma")

    def __init__(self, model: FlatVAE, capacity: float, gamma: float, warmup_steps: float) -> None:
        super().__init__(model)
        self.capacity, self.gamma, self.warmup_steps = capacity, gamma, warmup_steps

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]`` at an optimiser step."""
        capacity = self.capacity * ramp(step, self.warmup_steps)
        parts = terms(model(x, self.drawn(x, noise)), x)
        total = parts.distortion.mean() + self.gamma * (parts.rate.mean() - capacity).abs()
        return loss_of(total, parts.distortion, parts.rate, capacity=capacity)
