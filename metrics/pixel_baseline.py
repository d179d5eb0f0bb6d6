"""The likelihood with no latents: one discretised logistic per pixel and channel, fitted to the training images.

A model must beat it before its latents mean anything. Its bins are exact, so its bits per dimension are comparable with
those of every discrete likelihood here. For 1-bit images it is a Bernoulli per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.likelihoods import MIN_LOG_SCALE, log_bin_mass


@dataclass(frozen=True)
class PixelBaseline:
    """Mean and log-scale of a logistic for each of P values of an image, on the scale [-1, 1]."""

    mean: Tensor  # [P]
    log_scale: Tensor  # [P]
    num_bits: int

    def nats(self, counts: Tensor) -> float:
        """Mean negative log-likelihood per image in nats of images with these ``counts`` [P, 2^bits]."""
        num_images = counts[0].sum()
        return -float((counts * _log_masses(self.mean, self.log_scale, self.num_bits)).sum() / num_images)


def _log_masses(mean: Tensor, log_scale: Tensor, num_bits: int) -> Tensor:
    levels = torch.arange(2**num_bits, dtype=mean.dtype, device=mean.device)
    return log_bin_mass(levels, mean[:, None], log_scale[:, None], num_bits)  # [P, 2^bits]


def count_levels(counts: Tensor, images: Tensor) -> None:
    """Add uint8 ``images`` [B, C, H, W] to ``counts`` [C * H * W, 2^bits] in place."""
    num_levels = counts.shape[1]
    flat = images.flatten(1).long()  # [B, P]
    flat = flat + torch.arange(flat.shape[1]) * num_levels
    counts += torch.bincount(flat.flatten(), minlength=counts.numel()).view_as(counts)


def fit_pixel_baseline(counts: Tensor, num_bits: int, num_steps: int = 40) -> PixelBaseline:
    """Fit by maximum likelihood to the training images' ``counts`` [P, 2^bits].

    One pseudo-image, spread evenly over the levels, gives a pixel that never changes some mass at every level.
    """
    counts = counts.float() + 1.0 / counts.shape[1]
    weights = counts / counts.sum(1, keepdim=True)
    levels = torch.linspace(-1.0, 1.0, counts.shape[1])
    start_mean = weights @ levels
    variance = (weights @ levels**2 - start_mean**2).clamp_min(1e-6)
    mean = start_mean.clone().requires_grad_()
    log_scale = (0.5 * variance.log() + math.log(math.sqrt(3.0) / math.pi)).clamp_min(MIN_LOG_SCALE).requires_grad_()
    optimizer = torch.optim.Adam([mean, log_scale], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = -(weights * _log_masses(mean, log_scale.clamp_min(MIN_LOG_SCALE), num_bits)).sum()
            loss.backward()
        optimizer.step()
        schedule.step()
    return PixelBaseline(mean.detach(), log_scale.detach().clamp_min(MIN_LOG_SCALE), num_bits)
