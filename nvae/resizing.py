"""Doubling of height and width by matrix products, whose gradients are sums in a fixed order on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from nvae.precision import without_autocast


def _interpolation(size: int, like: Tensor) -> Tensor:
    """Weights [2 * size, size] of linear interpolation at twice as many points, corners aligned."""
    points = torch.arange(size, dtype=like.dtype, device=like.device)
    positions = torch.arange(2 * size, dtype=like.dtype, device=like.device) * ((size - 1) / (2 * size - 1))
    return (1.0 - (positions[:, None] - points).abs()).clamp_min(0.0)


def double_bilinear(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, C, 2H, 2W]`` by bilinear interpolation with aligned corners, in channels_last.

    What ``F.interpolate`` computes. Its gradient on CUDA adds up in an order that differs from run to run, so that a
    resumed run would not go on exactly; products of matrices do not. In float32 at least: interpolation weights that
    were rounded to half precision would not add up to one.
    """
    height, width = x.shape[2:]
    with without_autocast(x.device):
        pixels = (x if x.dtype == torch.float64 else x.float()).permute(0, 2, 3, 1)  # as they lie in memory
        rows, columns = _interpolation(height, pixels), _interpolation(width, pixels)
        y = torch.matmul(columns, pixels)  # [B, H, 2W, C]
        y = torch.matmul(rows, y.flatten(2)).unflatten(2, (2 * width, -1))  # [B, 2H, 2W, C]
        doubled: Tensor = y.to(x.dtype).permute(0, 3, 1, 2)
    return doubled
