"""Batch normalisation by the statistics of a batch that is spread over ranks.

CUDA uses the kernels of ``torch.nn.SyncBatchNorm``; other devices use plain tensor operations, which are faster there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from nvae.activations import Activation, activate, activation_gradient

EPS = 1e-5


def num_ranks() -> int:
    """Number of processes that share a batch; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True)
class Moments:
    """Per-channel statistics of a batch over all ranks: ``count`` values, ``mean`` [C], biased ``var`` [C], float32."""

    count: Tensor
    mean: Tensor
    var: Tensor

    def unbiased_var(self, copies: int = 1) -> Tensor:
        """Variance with Bessel's correction, [C], of values that each occur ``copies`` times."""
        count = self.count * copies
        return self.var * (count / (count - 1.0).clamp_min(1.0))


def _gathered(mine: Tensor) -> Tensor:
    """Values ``mine`` [N] of all ranks, [ranks, N], by one collective."""
    everyone = mine.new_empty(num_ranks() * mine.numel())
    dist.all_gather_into_tensor(everyone, mine)
    return everyone.view(num_ranks(), -1)


@torch.no_grad()
def batch_moments(x: Tensor) -> Moments:
    """Statistics of ``x`` [B, C, H, W] over B, H, W and all ranks, one collective.

    The ranks exchange count, mean and variance, because sums of squares lose the variance of channels with a large
    mean. On a CPU two passes over the data are six times as fast as ``torch.var_mean`` over these dimensions.
    """
    x = x if x.dtype == torch.float64 else x.float()
    mean = x.mean((0, 2, 3))
    var = (x - mean.view(1, -1, 1, 1)).square_().mean((0, 2, 3))
    count = torch.full((1,), x.numel() / x.shape[1], dtype=mean.dtype, device=mean.device)
    if num_ranks() == 1:
        return Moments(count, mean, var)
    counts, means, variances = _gathered(torch.cat([count, mean, var])).split([1, len(mean), len(mean)], dim=1)
    total = counts.sum(0)
    share = counts / total
    mean = (share * means).sum(0)
    return Moments(total, mean, (share * (variances + (means - mean) ** 2)).sum(0))


class _Tape(threading.local):
    """Statistics that the recomputation of a checkpointed cell takes from its forward pass without an exchange."""

    recorded: list[Any] | None = None
    replayed: Iterator[Any] | None = None


_tape = _Tape()


@contextmanager
def recording(found: list[Any]) -> Iterator[None]:
    """Context in which the statistics that ranks exchange are appended to ``found``."""
    before, _tape.recorded = _tape.recorded, found
    try:
        yield
    finally:
        _tape.recorded = before


@contextmanager
def replaying(found: list[Any]) -> Iterator[None]:
    """Context in which the statistics are taken from ``found``, in their order."""
    before, _tape.replayed = _tape.replayed, iter(found)
    try:
        yield
    finally:
        _tape.replayed = before


def once(exchange: Callable[[], Any]) -> Any:
    """Result of ``exchange``, or in a recomputation the result that it had in the forward pass."""
    if _tape.replayed is not None:
        return next(_tape.replayed)
    found = exchange()
    if _tape.recorded is not None:
        _tape.recorded.append(found)
    return found


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, EPS)


class _Norm(torch.autograd.Function):
    """Normalise by statistics over all ranks and activate; only the input is kept, the rest is recomputed.

    ``count``, ``mean`` and ``var`` must be the moments of ``x`` over all ranks, because the backward pass
    differentiates through them. Both passes are batch norms with given statistics, for which every device has fast
    kernels in mixed precision; the statistics' contribution to the gradient is affine in ``x``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        count: Tensor,
        mean: Tensor,
        var: Tensor,
        activation: Activation,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, count, mean, var)
        ctx.activation = activation
        return activate(_affine(x, weight, bias, mean, var), activation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, count, mean, var = ctx.saved_tensors
        grad_y = activation_gradient(grads[0], _affine(x, weight, bias, mean, var), ctx.activation)
        inverse_std = torch.rsqrt(var + EPS)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            # CUDA requires the statistics of the batch even if it is told to use the running ones
            *(grad_y, x, weight, mean, var, mean, inverse_std, False, EPS, [True, True, True])
        )
        sums = torch.stack([grad_weight, grad_bias])
        if num_ranks() > 1:
            dist.all_reduce(sums)
        slope, shift = -sums / count * (weight * inverse_std)
        return grad_x + _affine(x, slope, shift, mean, var), grad_weight, grad_bias, None, None, None, None


def cross_rank_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, moments: Moments, activation: Activation) -> Tensor:
    """Batch norm of ``x`` [B, C, H, W] by its :func:`batch_moments`, then the activation; on any device."""
    output: Tensor = _Norm.apply(x, weight, bias, moments.count, moments.mean, moments.var, activation)
    return output


@dataclass(frozen=True)
class DeviceMoments:
    """Statistics as CUDA's kernels take them: int32 ``counts`` [ranks], ``mean`` [C] and ``inverse_std`` [C] over all."""

    counts: Tensor
    mean: Tensor
    inverse_std: Tensor


@cache
def equal_counts(num_values: int, ranks: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``num_values`` for each rank, [ranks]; cached, because a step has hundreds of norms but few sizes of images."""
    with torch.inference_mode(False):  # it may serve a training step later
        return torch.full((ranks,), num_values, dtype=dtype, device=device)


@torch.no_grad()
def exchange_on_device(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> DeviceMoments:
    """Statistics of ``x`` [B, C, H, W] over all ranks, one collective; moves the running ones by ``momentum``.

    All ranks must hold equally many images, as they do in training: exchanging counts would cost three kernels per norm.
    """
    mean, inverse_std = torch.batch_norm_stats(x, EPS)
    means, inverse_stds = _gathered(torch.cat([mean, inverse_std])).chunk(2, 1)
    size = x.numel() // x.shape[1], num_ranks()
    mean, inverse_std = torch.batch_norm_gather_stats_with_counts(
        *(x, means, inverse_stds, running_mean, running_var, momentum, EPS),
        equal_counts(*size, mean.dtype, x.device),
    )
    return DeviceMoments(equal_counts(*size, torch.int32, x.device), mean, inverse_std)


class _DeviceNorm(torch.autograd.Function):
    """:class:`_Norm` with CUDA's own functions: fewer kernels, and gradients in the layout of ``x``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        counts: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        activation: Activation,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, counts, mean, inverse_std)
        ctx.activation = activation
        return activate(torch.batch_norm_elemt(x, weight, bias, mean, inverse_std, EPS), activation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, counts, mean, inverse_std = ctx.saved_tensors
        grad = grads[0]
        if ctx.activation != "none":
            y = torch.batch_norm_elemt(x, weight, bias, mean, inverse_std, EPS)
            grad = activation_gradient(grad, y, ctx.activation)
        if x.is_contiguous(memory_format=torch.channels_last):
            grad = grad.contiguous(memory_format=torch.channels_last)  # mixed layouts get CUDA's slowest kernel
        sum_dy, sum_dy_xmu, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            grad, x, mean, inverse_std, weight, True, True, True
        )
        sums = torch.cat([sum_dy, sum_dy_xmu])
        dist.all_reduce(sums)
        sum_dy, sum_dy_xmu = sums.chunk(2)
        grad_x = torch.batch_norm_backward_elemt(grad, x, mean, inverse_std, weight, sum_dy, sum_dy_xmu, counts)
        return grad_x, grad_weight, grad_bias, None, None, None, None


def device_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, moments: DeviceMoments, activation: Activation
) -> Tensor:
    """Batch norm of ``x`` [B, C, H, W] on CUDA by the moments of :func:`exchange_on_device`, then the activation."""
    output: Tensor = _DeviceNorm.apply(x, weight, bias, moments.counts, moments.mean, moments.inverse_std, activation)
    return output
