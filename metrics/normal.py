"""The diagonal Gaussian, from which the posteriors and priors of every model are built."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, which autocast may have left in half precision; float64 stays as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class Normal:
    """Independent Gaussians, one per element.

    The methods are those of ``torch.distributions.Normal``. The class holds two tensors and nothing else, so that
    ``torch.compile`` can trace it and no validation waits for the device.

    Args:
        mean: any shape, e.g. ``[B, C, H, W]`` for NVAE or ``[B, D]`` for a flat VAE.
        std: standard deviation, positive, broadcastable against ``mean``.
    """

    mean: Tensor
    std: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value`` in nats, elementwise."""
        return -0.5 * ((value - self.mean) / self.std) ** 2 - self.std.log() - HALF_LOG_TWO_PI

    def kl(self, other: Normal) -> Tensor:
        """KL(self || other) in nats, elementwise (closed form for two Gaussians)."""
        ratio = self.std / other.std
        shift = (self.mean - other.mean) / other.std
        return 0.5 * (shift**2 + ratio**2) - 0.5 - ratio.log()

    def rsample(self, noise: Tensor | None = None) -> Tensor:
        """Reparameterised draw ``mean + std * noise``; without ``noise``, standard-normal noise is drawn."""
        if noise is None:
            shape = torch.broadcast_shapes(self.mean.shape, self.std.shape)
            noise = torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.std * noise

    def entropy(self) -> Tensor:
        """Differential entropy in nats, elementwise."""
        return 0.5 + HALF_LOG_TWO_PI + self.std.log()

    def tempered(self, temperature: float) -> Normal:
        """The same Gaussian with its standard deviation multiplied by ``temperature``."""
        return Normal(self.mean, self.std * temperature)
