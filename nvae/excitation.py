"""Squeeze-and-excitation, added to the skip connection in one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nvae.precision import without_autocast


class _AddGated(torch.autograd.Function):
    """``skip + scale * x * gate`` with ``gate = sigmoid(W2 relu(W1 mean(x) + b1) + b2)``, [B, C].

    The gate is computed in the precision of its weights, so that none of them is cast. The hand-written passes take
    half as many operations as those of autograd.
    """

    @staticmethod
    def forward(
        ctx: Any, skip: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, scale: float
    ) -> Tensor:
        average = x.mean((2, 3), dtype=w1.dtype)
        hidden = torch._addmm_activation(b1, average, w1.t())  # and ReLU, in one kernel on CUDA
        gate = torch.sigmoid(torch.addmm(b2, hidden, w2.t()), out=x.new_empty(x.shape[:2]))
        ctx.save_for_backward(x, average, hidden, gate, w1, w2)
        ctx.scale = scale
        return torch.addcmul(skip, x, gate[:, :, None, None], value=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, average, hidden, gate, w1, w2 = ctx.saved_tensors
        grad, num_pixels = grads[0], x.shape[2] * x.shape[3]
        grad_gate = (grad * x).sum((2, 3), dtype=w1.dtype).mul_(ctx.scale)
        after_w2 = torch.ops.aten.sigmoid_backward(grad_gate, gate)
        after_w1 = torch.ops.aten.threshold_backward(after_w2 @ w2, hidden, 0)
        spread = torch.addmm(average, after_w1, w1, beta=0, alpha=1.0 / num_pixels)  # gradient through the average
        grad_x = torch.addcmul(spread.to(grad.dtype)[:, :, None, None], grad, gate[:, :, None, None], value=ctx.scale)
        grads_1 = after_w1.t() @ average, after_w1.sum(0)
        return grad, grad_x, *grads_1, after_w2.t() @ hidden, after_w2.sum(0), None


class SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their averages (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same shape."""
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]

    def add_gated(self, skip: Tensor, x: Tensor, scale: float) -> Tensor:
        """``skip + scale * forward(x)``."""
        if torch.compiler.is_compiling():  # the compiler fuses these operations
            return torch.add(skip, self(x), alpha=scale)
        with without_autocast(x.device):
            output: Tensor = _AddGated.apply(
                skip.to(x.dtype), x, self.squeeze.weight, self.squeeze.bias, self.excite.weight, self.excite.bias, scale
            )
        return output
