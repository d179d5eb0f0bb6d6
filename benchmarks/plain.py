"""NVAE as in a straightforward port: the same mathematics and weights, without optimisation for speed.

Contiguous layout, Swish as ``x * sigmoid(x)``, weights normalised where they are used, strided 1x1 convolutions,
doubling before the convolution, power iteration layer by layer, Adamax parameter by parameter, no checkpointing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.elbo import terms
from nvae import NVAE, ObjectiveConfig
from nvae.batch_norm import BatchNorm
from nvae.cells import Cell, InvertedResidualOp, upsample_nearest
from nvae.convolution import FactorizedReduce, UpsampleConv, WeightNormConv2d, effective_weight
from nvae.cross_rank import EPS
from nvae.depthwise import DepthwiseConv2d
from nvae.objective import kl_balance_alpha, kl_balance_coefficients, kl_coefficient, spectral_weight
from nvae.spectral import FIRST_CALL_FACTOR, MIN_NORM


def swish(x: Tensor) -> Tensor:
    """Two operations, both of whose results autograd keeps."""
    return x * torch.sigmoid(x)


class PlainBatchNorm(BatchNorm):
    """Batch norm, then Swish."""

    def forward(self, x: Tensor, copies: int = 1) -> Tensor:
        """Normalise and activate."""
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, EPS
        )
        if self.activation == "silu":
            return swish(y)
        return F.elu(y) if self.activation == "elu" else y


class PlainReduce(FactorizedReduce):
    """Four 1x1 convolutions of stride 2 on shifted images."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve."""
        x = swish(x)
        parts = []
        for conv, (i, j) in zip(self.convs, self.PHASES, strict=True):
            assert isinstance(conv, WeightNormConv2d)
            parts.append(F.conv2d(x[:, :, i:, j:], conv.effective_weight(), conv.bias, stride=2))
        return torch.cat(parts, dim=1)


class PlainDepthwise(DepthwiseConv2d):
    """Depthwise convolution as the framework provides it."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        output: Tensor = self._conv_forward(x, self.weight, None)
        return output


class PlainInverted(InvertedResidualOp):
    """Inverted residual that doubles the resolution before its convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operations in the order of the paper."""
        x = upsample_nearest(x) if self.upsample else x
        x = self.norm_expand(self.expand(self.norm_in(x)))
        output: Tensor = self.norm_out(self.project(self.norm_depthwise(self.depthwise(x))))
        return output


class PlainUpsample(UpsampleConv):
    """Double, then convolve four times the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Double."""
        doubled = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        output: Tensor = self.conv(doubled)
        return output


SIMPLER: dict[type[nn.Module], type[nn.Module]] = {
    BatchNorm: PlainBatchNorm,
    FactorizedReduce: PlainReduce,
    InvertedResidualOp: PlainInverted,
    UpsampleConv: PlainUpsample,
    DepthwiseConv2d: PlainDepthwise,
}


def plain_model(model: NVAE) -> NVAE:
    """A copy of ``model`` with the same weights, computed in the plain way."""
    port = copy.deepcopy(model)
    for module in port.modules():
        module.__class__ = SIMPLER.get(type(module), type(module))
        if isinstance(module, Cell):
            module.checkpointing = False
    port.layout = torch.contiguous_format
    return port.to(memory_format=torch.contiguous_format)


class PlainSpectral:
    """Power iteration, one layer after another."""

    def __init__(self, model: nn.Module, num_iterations: int) -> None:
        self.convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        self.vectors = [F.normalize(torch.randn(len(c.weight), device=c.weight.device), dim=0) for c in self.convs]
        self.num_iterations, self.first = num_iterations, True

    def __call__(self) -> Tensor:
        """The penalty; advances the vectors."""
        iterations = self.num_iterations * (FIRST_CALL_FACTOR if self.first else 1)
        self.first = False
        total: Tensor | None = None
        for i, conv in enumerate(self.convs):
            weight = effective_weight(conv).flatten(1)
            with torch.no_grad():
                u = self.vectors[i]
                for _ in range(iterations):
                    v = F.normalize(weight.t() @ u, dim=0, eps=MIN_NORM)
                    u = F.normalize(weight @ v, dim=0, eps=MIN_NORM)
                self.vectors[i] = u
            sigma = u @ weight @ v
            total = sigma if total is None else total + sigma
        assert total is not None
        return total


def plain_step(
    model: NVAE, config: ObjectiveConfig, lr: float, step: int, total_steps: int
) -> Callable[[Tensor], Tensor]:
    """A function of float images that takes one optimiser step at the schedule's ``step`` and returns the loss."""
    optimizer = torch.optim.Adamax(model.parameters(), lr=lr, eps=1e-3, weight_decay=3e-4, foreach=False)
    spectral = PlainSpectral(model, config.num_power_iterations)
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    alpha = kl_balance_alpha(model.config.groups).to(model.output_conv.weight.device)

    def take(x: Tensor) -> Tensor:
        parts = terms(model(x), x)
        coefficient = kl_coefficient(step, total_steps, config)
        kl = parts.kl * kl_balance_coefficients(parts.kl.detach().abs().mean(0), alpha)
        loss = (parts.distortion + coefficient * kl.sum(1)).mean()
        penalty = spectral()
        for norm in norms:
            penalty = penalty + norm.weight.abs().max()
        loss = loss + spectral_weight(coefficient, config) * penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return take
