"""Convolutions with normalised weights, plain, data-initialised and autoregressive."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvae.cross_rank import batch_moments
from nvae.depthwise import depthwise
from nvae.resizing import double_bilinear
from nvae.sharing import given

NORM_EPS = 1e-5


class Conv2d(nn.Conv2d):
    """PyTorch's convolution; it uses a given weight if the weights of all layers were computed together."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, C_in, H, W]``."""
        shared = given(self)
        weight, bias = (self.weight, self.bias) if shared is None else shared
        output: Tensor = self._conv_forward(x, weight, bias)
        return output


class WeightNormConv2d(nn.Conv2d):
    """Convolution whose weight is ``exp(log_weight_norm) * W / (|W| + 1e-5)``, the norm per output channel.

    Kernels are square with an odd side, and padding keeps the size at stride 1. The norm starts at ``|W| + 1e-2``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=bias
        )
        norm = self.raw_weight().detach().flatten(1).norm(dim=1)
        self.log_weight_norm = nn.Parameter(torch.log(norm + 1e-2).view(-1, 1, 1, 1))

    def raw_weight(self) -> Tensor:
        """The weight before normalisation."""
        return self.weight

    def direction(self) -> Tensor:
        """The weight with unit norm per output channel."""
        weight = self.raw_weight()
        norm: Tensor = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
        return weight / (norm + NORM_EPS)

    def effective_weight(self) -> Tensor:
        """The weight that convolves, ``[C_out, C_in / groups, k, k]``."""
        weight: Tensor = torch.exp(self.log_weight_norm) * self.direction()
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, C_in, H, W]``."""
        shared = given(self)
        weight, bias = (self.effective_weight(), self.bias) if shared is None else shared
        if self.groups == self.in_channels > 1 and self.bias is None:
            return depthwise(x, weight, self.stride[0])
        output: Tensor = self._conv_forward(x, weight, bias)
        return output


def effective_weight(conv: nn.Conv2d) -> Tensor:
    """Weight with which ``conv`` convolves, after any normalisation and masking."""
    if isinstance(conv, WeightNormConv2d):
        return conv.effective_weight()
    return conv.weight


class DataInitConv2d(WeightNormConv2d):
    """Weight-normalised convolution that sets its scale and bias from the first batch in training.

    The output for that batch then has zero mean and a standard deviation of 1/5 per channel, over all ranks. A saved
    buffer records the initialisation. The published code forgets it when it loads a checkpoint, and overwrites trained
    values.
    """

    initialised: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("initialised", torch.tensor(False))
        self._settled = False  # so that a forward pass need not read the buffer, which would wait for the device

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        assert self.bias is not None
        moments = batch_moments(self._conv_forward(x, self.direction(), None))
        std = 5.0 * moments.unbiased_var().sqrt() + 1e-5
        self.bias.copy_(-moments.mean / std)
        self.log_weight_norm.copy_(-std.log().view(-1, 1, 1, 1))
        self.initialised.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, C_in, H, W]``; the first batch in training sets scale and bias."""
        if self.training and not self._settled:
            if not self.initialised.is_meta and not bool(self.initialised):  # on meta, only shapes are counted
                self._initialise(x)
            self._settled = True
        return super().forward(x)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._settled = False


def autoregressive_mask(conv: nn.Conv2d, num_groups: int, *, zero_diagonal: bool, mirror: bool) -> Tensor:
    """Mask ``[C_out, C_in / groups, k, k]`` of a raster-order autoregressive convolution.

    All channels are visible in the rows above the centre and to the left of it. At the centre, channel group i sees the
    groups before it, and itself unless ``zero_diagonal``. ``mirror`` rotates the mask by 180 degrees in space.
    """
    out_channels, in_per_group, kernel, _ = conv.weight.shape
    centre = kernel // 2
    mask = np.zeros(conv.weight.shape, np.float32)  # NumPy: on PyTorch's meta device these steps take milliseconds
    mask[:, :, :centre] = 1.0
    mask[:, :, centre, :centre] = 1.0
    if conv.groups > 1:  # depthwise: every channel sees itself
        mask[:, :, centre, centre] = 1.0
    else:
        out_group = np.arange(out_channels) * num_groups // out_channels
        in_group = np.arange(in_per_group) * num_groups // in_per_group
        earlier = in_group < out_group[:, None] if zero_diagonal else in_group <= out_group[:, None]
        mask[:, :, centre, centre] = earlier
    return torch.from_numpy(mask[:, :, ::-1, ::-1].copy() if mirror else mask)


class AutoregressiveConv2d(WeightNormConv2d):
    """Masked weight-normalised convolution; masked taps do not count in the norm.

    Args:
        in_channels: a multiple of ``num_groups``.
        out_channels: a multiple of ``num_groups``.
        kernel_size: odd.
        num_groups: number of contiguous channel groups in the autoregressive order.
        zero_diagonal: hide each group from itself.
        mirror: start the order at the bottom right of the image.
        depthwise: convolve each channel separately.
        bias: add a bias.
        gain: factor on the initial norm.
    """

    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        num_groups: int,
        zero_diagonal: bool = False,
        mirror: bool = False,
        depthwise: bool = False,
        bias: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, groups=in_channels if depthwise else 1, bias=bias)
        mask = autoregressive_mask(self, num_groups, zero_diagonal=zero_diagonal, mirror=mirror)
        self.register_buffer("mask", mask.to(self.weight), persistent=False)
        norm = self.raw_weight().detach().flatten(1).norm(dim=1)
        with torch.no_grad():
            self.log_weight_norm.copy_(torch.log(norm + 1e-2).view(-1, 1, 1, 1) + math.log(gain))

    def raw_weight(self) -> Tensor:
        """The weight before normalisation, masked."""
        mask: Tensor | None = getattr(self, "mask", None)
        return self.weight if mask is None else self.weight * mask


class FactorizedReduce(nn.Module):
    """Halve the resolution and use every pixel: SiLU, then a 1x1 convolution of each of the four phases.

    The phases (row, column) = (0,0), (1,1), (0,1), (1,0) yield C_out // 4 channels each, the last one the rest. They
    are strided slices convolved at stride 1, because PyTorch on CPU corrupts memory in the backward pass of 1x1
    stride-2 convolutions in channels_last with 8 to 14 input channels (seen in 2.13 and 2.15).
    """

    PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        quarter = out_channels // 4
        sizes = (quarter, quarter, quarter, out_channels - 3 * quarter)
        self.convs = nn.ModuleList(WeightNormConv2d(in_channels, size, 1) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C_out, H/2, W/2]``, H and W even."""
        x = F.silu(x)
        parts = [conv(x[:, :, i::2, j::2]) for conv, (i, j) in zip(self.convs, self.PHASES, strict=True)]
        return torch.cat(parts, dim=1)


class UpsampleConv(nn.Module):
    """Double the resolution bilinearly (corners aligned) with a 1x1 convolution.

    Both are linear and the convolution has no bias, so it is computed first, on a quarter of the pixels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C_out, 2H, 2W]``."""
        return double_bilinear(self.conv(x))
