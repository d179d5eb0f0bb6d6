"""Decisions: how a top-down pass obtains the latents of a group, from the posterior, from the prior or from outside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metrics.normal import Normal


class Decision(Protocol):
    """Rule by which a top-down pass chooses the latents of one group."""

    @property
    def from_posterior(self) -> bool:
        """True if the draw comes from the posterior; a normalising flow of the group then transforms it."""

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """Latents ``[B, ...]`` of the group, before any flow."""


@dataclass(frozen=True)
class PosteriorSample:
    """Draw from the posterior, with the given standard-normal noise or with fresh noise."""

    noise: Tensor | None = None
    from_posterior = True

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """``mean + std * noise`` of the posterior."""
        return posterior.rsample(self.noise)


@dataclass(frozen=True)
class PosteriorMean:
    """Take the posterior's mean."""

    from_posterior = True

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """Mean of the posterior."""
        return posterior.mean


@dataclass(frozen=True)
class PriorSample:
    """Draw from the prior with its standard deviation multiplied by ``temperature`` (0 gives the prior's mean)."""

    temperature: float = 1.0
    noise: Tensor | None = None
    generator: torch.Generator | None = None
    from_posterior = False

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """``mean + temperature * std * noise`` of the prior."""
        if self.temperature == 0.0:
            return prior.mean
        mean, noise = prior.mean, self.noise
        if noise is None:
            device = mean.device if self.generator is None else self.generator.device
            noise = torch.randn(mean.shape, dtype=mean.dtype, device=device, generator=self.generator).to(mean.device)
        return prior.tempered(self.temperature).rsample(noise)


@dataclass(frozen=True)
class Fixed:
    """Use the given latents, as the decoder sees them (after any flow)."""

    z: Tensor
    from_posterior = False

    def draw(self, prior: Normal, posterior: Normal) -> Tensor:
        """The given latents."""
        return self.z.expand_as(prior.mean)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive and finite.

    Raises:
        ValueError: ``temperature`` is not a positive finite number.
    """
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(
            f"temperature is {temperature}; give a number above 0, e.g. 0.7 (1 samples the model as trained)"
        )
