"""Transposed convolution at the end of a decoder, computed in a way that is fast for few output channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_CHANNELS = 4  # measured for 1 and 3; for 32, PyTorch's own kernel is twice as fast


class SubpixelConvTranspose2d(nn.ConvTranspose2d):
    """Transposed 4x4 convolution (stride 2, padding 1), computed as a 2x2 convolution to four times as many channels.

    An output pixel depends on two inputs along each axis, whatever its parity, so one dense convolution computes the
    pixels of all four parities (Shi et al. 2016, arXiv 1609.07009). Function, weights [I, O, 4, 4] and names are those
    of the parent class; only the order of summation differs.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[B, I, H, W] -> [B, O, 2H, 2W]."""
        assert output_size is None
        assert self.bias is not None
        channels, (height, width) = self.out_channels, input.shape[2:]
        corners = F.conv2d(input, self._per_corner(), self.bias.repeat(4), padding=1)  # [B, 4 O, H + 1, W + 1]
        kinds = corners.unflatten(1, (2, 2, channels))
        rows = [torch.stack([kinds[:, a, b, :, a : a + height, b : b + width] for b in (0, 1)], dim=-1) for a in (0, 1)]
        return torch.stack(rows, dim=3).reshape(-1, channels, 2 * height, 2 * width)

    def _per_corner(self) -> Tensor:
        """Weights [4 O, I, 2, 2]: in rows of parity a, input t has the tap of row 3 - a - 2 t of the 4x4 kernel."""
        kinds: Tensor = self.weight.unflatten(3, (2, 2)).unflatten(2, (2, 2)).flip(2, 3, 4, 5)  # [I, O, t, a, s, b]
        return kinds.permute(3, 5, 1, 0, 2, 4).reshape(4 * self.out_channels, self.in_channels, 2, 2)


def upsampling(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """4x4 stride-2 transposed convolution [B, I, H, W] -> [B, O, 2H, 2W], in the faster form for its channels."""
    if out_channels <= MOST_CHANNELS:
        return SubpixelConvTranspose2d(in_channels, out_channels)
    return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
