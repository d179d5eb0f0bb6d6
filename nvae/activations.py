"""Activations of the cells, and their gradients for functions with a hand-written backward pass."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["silu", "elu", "none"]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """SiLU ("Swish"), ELU or nothing."""
    if activation == "silu":
        return F.silu(x)
    return F.elu(x) if activation == "elu" else x


def activation_gradient(grad: Tensor, y: Tensor, activation: Activation) -> Tensor:
    """Gradient with respect to an activation's input ``y``, from the gradient with respect to its output."""
    gradient = grad
    if activation == "silu":
        gradient = torch.ops.aten.silu_backward(grad, y)
    elif activation == "elu":
        gradient = torch.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, False, y)
    return gradient
