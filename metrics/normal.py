"""The diagonal Gaussian belief: what posteriors and priors are made of, in both models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that already: autocast may have made it half precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class Normal:
    """Independent Gaussians, one per element.

    The vocabulary of ``torch.distributions.Normal`` on two tensors and nothing else, so that ``torch.compile`` sees
    through it and no validation synchronises with the device.

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
        """Reparameterised draw ``mean + std * noise``; standard-normal noise is drawn where none is given."""
        if noise is None:
            shape = torch.broadcast_shapes(self.mean.shape, self.std.shape)
            noise = torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.std * noise

    def entropy(self) -> Tensor:
        """Differential entropy in nats, elementwise."""
        return 0.5 + HALF_LOG_TWO_PI + self.std.log()

    def tempered(self, temperature: float) -> Normal:
        """The same belief with its standard deviation multiplied by ``temperature``."""
        return Normal(self.mean, self.std * temperature)
