"""Doubling of height and width by matrix products, whose gradients are summed in a fixed order on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from nvae.precision import without_autocast


def _interpolation(size: int, like: Tensor) -> Tensor:
    """Weights [2 * size, size] of linear interpolation to twice as many points, with aligned corners."""
    points = torch.arange(size, dtype=like.dtype, device=like.device)
    positions = torch.arange(2 * size, dtype=like.dtype, device=like.device) * ((size - 1) / (2 * size - 1))
    return (1.0 - (positions[:, None] - points).abs()).clamp_min(0.0)


def double_bilinear(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, C, 2H, 2W]`` by bilinear interpolation with aligned corners, in channels_last.

    The result is that of ``F.interpolate``. On CUDA the gradient of ``F.interpolate`` is summed in an order that
    differs from run to run, so a resumed run would not continue exactly; the gradient of matrix products is
    deterministic. The precision is at least float32, because interpolation weights rounded to half precision would not sum to one.
    """
    height, width = x.shape[2:]
    with without_autocast(x.device):
        pixels = (x if x.dtype == torch.float64 else x.float()).permute(0, 2, 3, 1)  # [B, H, W, C], the order in memory
        rows, columns = _interpolation(height, pixels), _interpolation(width, pixels)
        y = torch.matmul(columns, pixels)  # [B, H, 2W, C]
        y = torch.matmul(rows, y.flatten(2)).unflatten(2, (2 * width, -1))  # [B, 2H, 2W, C]
        doubled: Tensor = y.to(x.dtype).permute(0, 3, 1, 2)
    return doubled
