"""The no-latents likelihood: known answers and the bound that no fit can beat."""

from __future__ import annotations

import math

import pytest
import torch

from metrics.pixel_baseline import count_levels, fit_pixel_baseline


def counts_of(images: torch.Tensor, num_bits: int) -> torch.Tensor:
    counts = torch.zeros(images[0].numel(), 2**num_bits, dtype=torch.int64)
    for block in images.split(7):
        count_levels(counts, block)
    return counts


def test_counts_are_those_of_each_pixel() -> None:
    images = torch.randint(0, 4, (30, 1, 2, 3), dtype=torch.uint8)
    counts = counts_of(images, 2)
    for p, values in enumerate(images.flatten(1).T):
        assert counts[p].tolist() == [(values == level).sum().item() for level in range(4)]


def test_binary_pixels_reach_their_entropy() -> None:
    images = (torch.rand(4000, 1, 2, 2) < torch.tensor([[0.1, 0.5], [0.9, 0.3]])).to(torch.uint8)
    counts = counts_of(images, 1)
    p = images.float().mean(0).flatten()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum().item()
    assert fit_pixel_baseline(counts, 1).nats(counts) == pytest.approx(entropy, rel=2e-3)


def test_a_logistic_pixel_is_recovered_to_its_own_code_length() -> None:
    u = torch.rand(20_000, 1, 1, 1).clamp(1e-6, 1 - 1e-6)
    scaled = 0.2 + 0.1 * (u.log() - torch.log1p(-u))
    images = torch.round((scaled.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    counts = counts_of(images, 8)
    # differential entropy of a logistic is log(scale) + 2; a bin is 2 / 255 wide
    assert fit_pixel_baseline(counts, 8).nats(counts) == pytest.approx(math.log(0.1) + 2 - math.log(2 / 255), abs=0.02)


def test_pixels_that_never_change_keep_a_finite_cost() -> None:
    fitted = fit_pixel_baseline(counts_of(torch.zeros(100, 1, 1, 1, dtype=torch.uint8), 1), 1)
    assert math.isfinite(fitted.nats(counts_of(torch.ones(1, 1, 1, 1, dtype=torch.uint8), 1)))
