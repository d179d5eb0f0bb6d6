"""Depthwise convolution with a weight gradient that uses the fast kernels of oneDNN on CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvae.sharing import given

FAST_WIDTH = 3


def _columns(kernel: int) -> list[tuple[int, int]]:
    """Pairs (first column, number of columns) of the strips into which a kernel is cut."""
    return [(first, min(FAST_WIDTH, kernel - first)) for first in range(0, kernel, FAST_WIDTH)]


class _Depthwise(torch.autograd.Function):
    """``F.conv2d`` with one group per channel; the weight's gradient is computed strip by strip.

    The depthwise kernel of oneDNN (3.13) for weight gradients supports up to 3 columns. For 5x5 weights oneDNN falls
    back to dense blocks of 16 x 16 channels, which takes 10 to 25 times as long. Tap j of a kernel sees the image
    shifted by j, so a strip of taps is a narrow convolution of a shifted image.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, kernel = grads[0], weight.shape[-1]
        centre = kernel // 2
        common = (None, [ctx.stride, ctx.stride])
        rest = ([1, 1], False, [0, 0], len(weight))
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight, *common, [centre, centre], *rest, [True, False, False]
            )[0]
        if ctx.needs_input_grad[1]:
            strips = []
            for first, width in _columns(kernel):
                shifted = F.pad(x, (centre - first, first + width - 1 - centre))
                strip = weight[..., first : first + width].contiguous()
                strips.append(
                    torch.ops.aten.convolution_backward(
                        grad, shifted, strip, *common, [centre, 0], *rest, [False, True, False]
                    )[1]
                )
            grad_weight = torch.cat(strips, dim=3)
        return grad_x, grad_weight, None


def depthwise(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolve each channel of ``[B, C, H, W]`` with its own odd square kernel ``[C, 1, k, k]``, padded by k // 2."""
    if x.device.type != "cpu" or weight.shape[-1] <= FAST_WIDTH:
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
    output: Tensor = _Depthwise.apply(x, weight, stride)
    return output


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution without a bias; odd kernels, padded to keep the size at stride 1."""

    def __init__(self, channels: int, kernel_size: int, *, stride: int = 1) -> None:
        padding = (kernel_size - 1) // 2
        super().__init__(channels, channels, kernel_size, stride, padding, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, C, H, W]``."""
        shared = given(self)
        return depthwise(x, self.weight if shared is None else shared.weight, self.stride[0])
