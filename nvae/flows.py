"""Volume-preserving autoregressive flows that make the posteriors more expressive (paper, section 3.4 "IAF")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nvae.convolution import AutoregressiveConv2d

EXPANSION = 6


class AutoregressiveCell(nn.Module):
    """``z - shift(z)``, where the shift at a position sees only earlier positions and channels.

    The Jacobian is triangular with a unit diagonal, so log|det| = 0. As in the published code, the shift does not
    depend on the image.
    """

    def __init__(self, channels: int, *, mirror: bool) -> None:
        super().__init__()
        hidden = EXPANSION * channels
        self.conv_in = AutoregressiveConv2d(channels, hidden, 3, num_groups=channels, zero_diagonal=True, mirror=mirror)
        self.depthwise = AutoregressiveConv2d(hidden, hidden, 5, num_groups=channels, mirror=mirror, depthwise=True)
        self.conv_out = AutoregressiveConv2d(
            hidden, channels, 1, num_groups=channels, mirror=mirror, bias=True, gain=0.1
        )

    def forward(self, z: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same shape."""
        hidden = F.elu(self.conv_in(z))
        hidden = F.elu(F.elu(self.depthwise(hidden)))  # twice, as published
        shift: Tensor = self.conv_out(hidden)
        return z - shift.to(z.dtype)


class FlowPair(nn.Module):
    """One cell in raster order, one in the reverse order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.forwards = AutoregressiveCell(channels, mirror=False)
        self.backwards = AutoregressiveCell(channels, mirror=True)

    def forward(self, z: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same shape."""
        output: Tensor = self.backwards(self.forwards(z))
        return output
