"""Beliefs about latents: softly clamped normals, residual posteriors, and how a group's latents are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metrics.normal import Normal

CLAMP = 5.0
MIN_STD = 1e-2


def soft_clamp(x: Tensor) -> Tensor:
    """Smoothly into (-5, 5): 5 tanh(x / 5)."""
    return CLAMP * torch.tanh(x / CLAMP)


def normal_from_raw(mean: Tensor, log_std: Tensor) -> Normal:
    """Belief from raw network outputs: mean and log-std softly clamped, 0.01 added to the std; in float32."""
    mean, log_std = (p if p.dtype == torch.float64 else p.float() for p in (mean, log_std))
    return Normal(soft_clamp(mean), torch.exp(soft_clamp(log_std)) + MIN_STD)


def beliefs(prior_raw: Tensor, posterior_raw: Tensor | None, *, residual: bool) -> tuple[Normal, Normal]:
    """Prior and posterior of a group from raw parameters ``[B, 2 C, H, W]`` (means, then log-stds).

    Residual (paper, section 3.2): the raw parameters are added and then clamped, so the posterior's mean and log-std
    are relative to the prior's only up to the clamp. Without an image (``posterior_raw`` None) it is the prior.
    """
    prior = normal_from_raw(*prior_raw.chunk(2, dim=1))
    if posterior_raw is None:
        return prior, prior
    raw = prior_raw + posterior_raw if residual else posterior_raw
    return prior, normal_from_raw(*raw.chunk(2, dim=1))


class Decision(Protocol):
    """How the top-down pass gets a group's latents."""

    @property
    def from_posterior(self) -> bool:
        """Whether the draw is one of the posterior's, which its flow then moves."""

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """The latents ``[B, C, H, W]``, before a flow."""


@dataclass(frozen=True)
class PosteriorSample:
    """Draw from the posterior, with given standard-normal noise or fresh."""

    noise: Tensor | None = None
    from_posterior = True

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """``mean + std * noise``."""
        return posterior.rsample(self.noise)


@dataclass(frozen=True)
class PosteriorMean:
    """Take the posterior's mean."""

    from_posterior = True

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """The mean."""
        return posterior.mean


@dataclass(frozen=True)
class PriorSample:
    """Draw from the prior with its std multiplied by ``temperature`` (0: its mean)."""

    temperature: float = 1.0
    noise: Tensor | None = None
    generator: torch.Generator | None = None
    from_posterior = False

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """``mean + temperature * std * noise``."""
        if self.temperature == 0.0:
            return prior.mean
        mean, noise = prior.mean, self.noise
        if noise is None:
            device = mean.device if self.generator is None else self.generator.device
            noise = torch.randn(mean.shape, dtype=mean.dtype, device=device, generator=self.generator).to(mean.device)
        return prior.tempered(self.temperature).rsample(noise)


@dataclass(frozen=True)
class Fixed:
    """Use these latents (as the decoder sees them, so after any flow)."""

    z: Tensor
    from_posterior = False

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """The given latents."""
        return self.z.expand_as(prior.mean)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a positive finite number."""
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(
            f"temperature is {temperature}; give a number above 0, e.g. 0.7 (1 samples the model as trained)"
        )
