"""Weights of all layers, computed together: a model has hundreds of convolutions, but of few shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nvae.batch_norm import norms_by_width
from nvae.convolution import NORM_EPS, AutoregressiveConv2d, WeightNormConv2d
from nvae.precision import autocast_dtype, without_autocast
from nvae.sharing import Given


@dataclass(frozen=True)
class ShapeGroup:
    """Convolutions whose weights are matrices of one shape, ``C_out x (k * k * C_in / groups)``.

    Args:
        shape: its name, "RxC".
        names: names of the layers in the model.
        layers: the layers, in the order of the model's modules.
        first_row: index of the group's first row among the rows of all groups.
    """

    shape: str
    names: list[str]
    layers: list[nn.Conv2d]
    first_row: int

    @property
    def num_rows(self) -> int:
        """Number of output channels of all layers."""
        return len(self.layers) * self.layers[0].weight.shape[0]

    @property
    def has_normalised(self) -> bool:
        """True if some of the weights are normalised."""
        return any(isinstance(layer, WeightNormConv2d) for layer in self.layers)

    def of_rows(self, values: Tensor) -> Tensor:
        """The group's share [N, R, 1] of a value per row."""
        return values[self.first_row : self.first_row + self.num_rows].view(len(self.layers), -1, 1)


def _matrix(weight: Tensor) -> Tensor:
    """Weight as a matrix, [C_out, C_in, k, k] -> [C_out, k * k * C_in]; a view if the layout is channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _weight(matrix: Tensor, layer: nn.Conv2d) -> Tensor:
    """The inverse of :func:`_matrix`, a view."""
    out_channels, in_channels, height, width = layer.weight.shape
    return matrix.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)


class _Normalise(torch.autograd.Function):
    """Stacks of effective weights, one for each group, from the raw weights and log-norms of all layers.

    Values per row are computed for the rows of all groups at once. The gradient is written by hand: autograd would take
    about twenty operations for each group instead of six.
    """

    @staticmethod
    def forward(
        ctx: Any,
        groups: Sequence[ShapeGroup],
        masks: Sequence[Tensor | None],
        normalised: Tensor,
        logs: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        left, raws, norms = list(weights), [], torch.ones_like(logs)
        for group, mask in zip(groups, masks, strict=True):
            mine, left = left[: len(group.layers)], left[len(group.layers) :]
            raw = torch.stack([_matrix(weight) for weight in mine])  # [N, R, C]
            raws.append(raw if mask is None else raw.mul_(mask))
            if group.has_normalised:
                torch.linalg.vector_norm(raw, dim=2, keepdim=True, out=group.of_rows(norms))
        scales = torch.where(normalised, logs.exp() / (norms + NORM_EPS), 1.0)
        ctx.groups, ctx.masks = groups, masks
        ctx.save_for_backward(norms, scales, normalised, *raws)
        return tuple(
            raw * group.of_rows(scales) if group.has_normalised else raw.view_as(raw)
            for raw, group in zip(raws, groups, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        norms, scales, normalised, *raws = ctx.saved_tensors
        inner = torch.zeros_like(norms)  # inner product of each row's gradient with its raw weight
        for group, raw, grad in zip(ctx.groups, raws, grads, strict=True):
            if group.has_normalised:
                torch.sum(grad * raw, dim=2, keepdim=True, out=group.of_rows(inner))
        grad_logs = torch.where(normalised, inner * scales, 0.0)
        along = -grad_logs / ((norms + NORM_EPS) * norms.clamp_min(torch.finfo(norms.dtype).tiny ** 0.5))
        grad_weights: list[Tensor] = []
        for group, mask, raw, grad in zip(ctx.groups, ctx.masks, raws, grads, strict=True):
            if group.has_normalised:
                grad = (grad * group.of_rows(scales)).addcmul_(raw, group.of_rows(along))
            grad = grad if mask is None else grad * mask
            grad_weights += [_weight(m, layer) for m, layer in zip(grad.unbind(0), group.layers, strict=True)]
        return None, None, None, grad_logs, *grad_weights


@dataclass(frozen=True)
class Stacks:
    """Weights of a model as tensors of many layers.

    Args:
        matrices: effective weights of the convolutions, [N, R, C] for each :class:`ShapeGroup`.
        scales: gamma of the batch norms, [N, C] for each width C.
        biases: biases of the convolutions, concatenated, [P].
    """

    matrices: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    biases: Tensor

    def leaves(self) -> Stacks:
        """The same values detached from the parameters, to collect the gradients of several backward passes."""
        return Stacks(
            tuple(matrix.detach().requires_grad_() for matrix in self.matrices),
            tuple(scale.detach().requires_grad_() for scale in self.scales),
            self.biases.detach().requires_grad_(),
        )

    def tensors(self) -> list[Tensor]:
        """All tensors in one list."""
        return [*self.matrices, *self.scales, self.biases]


class WeightStacks(nn.Module):
    """Computes the :class:`Stacks` of a model, and the views of them that its layers use.

    Args:
        model: model with the layers; they are referenced, not owned.
    """

    normalised: Tensor
    no_log: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        found: dict[str, tuple[list[str], list[nn.Conv2d]]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                rows = module.weight.shape[0]
                names, layers = found.setdefault(f"{rows}x{module.weight.numel() // rows}", ([], []))
                names.append(name)
                layers.append(module)
        self.groups: list[ShapeGroup] = []
        for shape, (names, layers) in found.items():
            first_row = sum(group.num_rows for group in self.groups)
            self.groups.append(ShapeGroup(shape, names, layers, first_row))
        self._convs = [layer for group in self.groups for layer in group.layers]
        self._biased = [layer for layer in self._convs if layer.bias is not None]
        self._norms = norms_by_width(model)
        self._register(next(model.parameters()))

    def _register(self, like: Tensor) -> None:
        rows = [isinstance(layer, WeightNormConv2d) for layer in self._convs for _ in range(layer.weight.shape[0])]
        self.register_buffer("normalised", torch.tensor(rows, dtype=torch.bool, device=like.device), persistent=False)
        self.register_buffer(
            "no_log", torch.zeros(max(len(layer.weight) for layer in self._convs)).to(like), persistent=False
        )
        for group in self.groups:
            masks = [layer.mask if isinstance(layer, AutoregressiveConv2d) else None for layer in group.layers]
            if any(mask is not None for mask in masks):
                ones = torch.ones_like(_matrix(group.layers[0].weight.detach()))
                stacked = torch.stack([ones if mask is None else _matrix(mask) for mask in masks])
                self.register_buffer(f"mask_{group.shape}", stacked, persistent=False)

    def forward(self) -> Stacks:
        """All weights in few operations; gradients reach the parameters."""
        like = self._convs[0].weight
        with without_autocast(like.device):
            masks = [getattr(self, f"mask_{group.shape}", None) for group in self.groups]
            logs = torch.cat([self._log_norm(layer) for layer in self._convs])
            weights = [layer.weight for layer in self._convs]
            matrices = _Normalise.apply(self.groups, masks, self.normalised, logs, *weights)
            scales = tuple(torch.stack([norm.weight for norm in norms]) for norms in self._norms)
            biases = [layer.bias for layer in self._biased if layer.bias is not None]
            return Stacks(tuple(matrices), scales, torch.cat(biases) if biases else like.new_zeros(0))

    def _log_norm(self, layer: nn.Conv2d) -> Tensor:
        if isinstance(layer, WeightNormConv2d):
            return layer.log_weight_norm.flatten()
        return self.no_log[: len(layer.weight)]

    def given(self, stacks: Stacks) -> dict[nn.Module, Given]:
        """Weights by layer: views of ``stacks``, those of convolutions in the precision of autocast."""
        low = autocast_dtype(stacks.biases.device)
        found: dict[nn.Module, Given] = {}
        biases = stacks.biases if low is None else stacks.biases.to(low)
        bias_of = dict(zip(self._biased, biases.split([len(layer.weight) for layer in self._biased]), strict=True))
        for matrix, group in zip(stacks.matrices, self.groups, strict=True):
            stack = matrix if low is None else matrix.to(low)
            for layer, one in zip(group.layers, stack.unbind(0), strict=True):
                found[layer] = Given(_weight(one, layer), bias_of.get(layer))
        for scales, norms in zip(stacks.scales, self._norms, strict=True):
            for norm, scale in zip(norms, scales.unbind(0), strict=True):
                found[norm] = Given(scale)
        return found
