"""Priors and posteriors of latents: softly clamped Gaussians and residual posteriors."""

from __future__ import annotations

import torch
from torch import Tensor

from metrics.normal import Normal, at_least_float32

CLAMP = 5.0
MIN_STD = 1e-2


def soft_clamp(x: Tensor) -> Tensor:
    """Smooth clamp to (-5, 5): 5 tanh(x / 5)."""
    return CLAMP * torch.tanh(x / CLAMP)


def normal_from_raw(mean: Tensor, log_std: Tensor) -> Normal:
    """Gaussian from a network's raw outputs, in float32: mean and log-std softly clamped, 0.01 added to the std."""
    mean, log_std = at_least_float32(mean), at_least_float32(log_std)
    return Normal(soft_clamp(mean), torch.exp(soft_clamp(log_std)) + MIN_STD)


def _normal(raw: Tensor) -> Normal:
    """Gaussian from raw parameters ``[B, 2 C, H, W]`` (means, then log-stds), clamped in one operation."""
    mean, log_std = soft_clamp(at_least_float32(raw)).chunk(2, dim=1)
    return Normal(mean, torch.exp(log_std) + MIN_STD)


def prior_and_posterior(prior_raw: Tensor, posterior_raw: Tensor | None, *, residual: bool) -> tuple[Normal, Normal]:
    """Prior and posterior of a group from raw parameters ``[B, 2 C, H, W]`` (means, then log-stds).

    A residual posterior (paper, section 3.2) adds its raw parameters to those of the prior, and the sum is clamped; its
    mean and log-std are therefore relative to the prior's only up to the clamp. Without an image (``posterior_raw`` is
    None) the posterior equals the prior.
    """
    prior = _normal(prior_raw)
    if posterior_raw is None:
        return prior, prior
    raw = prior_raw + posterior_raw if residual else posterior_raw
    return prior, _normal(raw)
