"""The diagonal Gaussian, from which the posteriors and priors of every model are built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, which autocast may have left in half precision; float64 is unchanged."""
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
        return torch.addcmul(self.mean, self.std, noise)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, elementwise."""
        return 0.5 + HALF_LOG_TWO_PI + self.std.log()

    def tempered(self, temperature: float) -> Normal:
        """The same Gaussian with its standard deviation multiplied by ``temperature``."""
        return Normal(self.mean, self.std * temperature)


class _LogRatio(torch.autograd.Function):
    """log q(base) - log p(z), elementwise; written out, both passes take half of the operations that autograd would."""

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, q_mean: Tensor, q_std: Tensor, z: Tensor, p_mean: Tensor, p_std: Tensor
    ) -> Tensor:
        q_shift, p_shift = (base - q_mean) / q_std, (z - p_mean) / p_std
        ctx.save_for_backward(q_shift, q_std, p_shift, p_std)
        ratio = (p_std / q_std).log_()
        return ratio.addcmul_(p_shift, p_shift, value=0.5).addcmul_(q_shift, q_shift, value=-0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        grad = grads[0]
        q_shift, q_std, p_shift, p_std = ctx.saved_tensors
        q_part, p_part = grad / q_std, grad / p_std
        q_moved, p_moved = q_part * q_shift, p_part * p_shift
        to_q_std = (q_moved * q_shift).sub_(q_part)
        to_p_std = torch.addcmul(p_part, p_moved, p_shift, value=-1.0)
        return -q_moved, q_moved, to_q_std, p_moved, -p_moved, to_p_std


def log_ratio(q: Normal, base: Tensor, p: Normal, z: Tensor) -> Tensor:
    """log q(base) - log p(z) in nats, elementwise; all of one shape."""
    ratio: Tensor = _LogRatio.apply(base, q.mean, q.std, z, p.mean, p.std)
    return ratio
