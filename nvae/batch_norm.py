"""Batch normalisation with its activation: statistics over all ranks, and their re-estimation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["silu", "elu", "none"]
EPS = 1e-5
MOMENTUM = 0.05  # new = 0.95 * old + 0.05 * batch, as published


def num_ranks() -> int:
    """Processes that share a batch; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True)
class Moments:
    """Per-channel statistics of a batch over all ranks: ``count`` values, ``mean`` [C], biased ``var`` [C], float32."""

    count: Tensor
    mean: Tensor
    var: Tensor

    def unbiased_var(self, copies: int = 1) -> Tensor:
        """Variance with Bessel's correction, [C], of the values with each of them there ``copies`` times."""
        count = self.count * copies
        return self.var * (count / (count - 1.0).clamp_min(1.0))


@torch.no_grad()
def batch_moments(x: Tensor) -> Moments:
    """Statistics of ``x`` [B, C, H, W] over B, H, W and all ranks, one collective.

    Ranks exchange count, mean and variance; sums of squares would lose the variance of channels far from zero. Two
    passes over the data are six times as fast on CPU as ``torch.var_mean`` over these dimensions.
    """
    x = x if x.dtype == torch.float64 else x.float()
    mean = x.mean((0, 2, 3))
    var = (x - _per_channel(mean)).square_().mean((0, 2, 3))
    count = torch.full((1,), x.numel() / x.shape[1], dtype=mean.dtype, device=mean.device)
    if num_ranks() == 1:
        return Moments(count, mean, var)
    mine = torch.cat([count, mean, var])
    everyone = mine.new_empty(num_ranks(), mine.numel())
    dist.all_gather(list(everyone.unbind(0)), mine)
    channels = mean.numel()
    counts, means, variances = everyone[:, :1], everyone[:, 1 : 1 + channels], everyone[:, 1 + channels :]
    total = counts.sum(0)
    share = counts / total
    mean = (share * means).sum(0)
    return Moments(total, mean, (share * (variances + (means - mean) ** 2)).sum(0))


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


_state = threading.local()


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Within it batch norms of this thread leave their running statistics alone (they still use the batch's)."""
    before = getattr(_state, "frozen", False)
    _state.frozen = True
    try:
        yield
    finally:
        _state.frozen = before


def activate(x: Tensor, activation: Activation) -> Tensor:
    """SiLU ("Swish"), ELU or nothing."""
    if activation == "silu":
        return F.silu(x)
    return F.elu(x) if activation == "elu" else x


def _activation_gradient(grad: Tensor, y: Tensor, activation: Activation) -> Tensor:
    gradient = grad
    if activation == "silu":
        gradient = torch.ops.aten.silu_backward(grad, y)
    elif activation == "elu":
        gradient = torch.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, False, y)
    return gradient


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, EPS)


class _CrossRankNorm(torch.autograd.Function):
    """Normalise by statistics over all ranks and activate; keeps only the input and recomputes the rest.

    ``count``, ``mean`` and ``var`` must be the moments of ``x`` over all ranks: the backward pass differentiates
    through them. Both passes are batch norms with given statistics, for which every device has fast kernels in mixed
    precision; what the statistics contribute to the gradient is affine in ``x``.
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
        grad_y = _activation_gradient(grads[0], _affine(x, weight, bias, mean, var), ctx.activation)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_y, x, weight, mean, var, None, None, False, EPS, [True, True, True]
        )
        sums = torch.stack([grad_weight, grad_bias])
        if num_ranks() > 1:
            dist.all_reduce(sums)
        slope, shift = -sums / count * (weight * torch.rsqrt(var + EPS))
        return grad_x + _affine(x, slope, shift, mean, var), grad_weight, grad_bias, None, None, None, None


def cross_rank_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, moments: Moments, activation: Activation) -> Tensor:
    """Batch norm of ``x`` [B, C, H, W] by its :func:`batch_moments`, then the activation."""
    output: Tensor = _CrossRankNorm.apply(x, weight, bias, moments.count, moments.mean, moments.var, activation)
    return output


class BatchNorm(nn.Module):
    """Batch normalisation over ``[B, C, H, W]`` followed by an activation.

    In training the statistics are those of the batch over all ranks, in float32 under autocast too; the running ones
    move by 5 % of them (unbiased variance). In evaluation the running ones are used. Between ranks only the input is
    kept for the backward pass. One process uses PyTorch's own operations, which are faster by a fifth than a
    recomputing one and which torch.compile recomputes by itself; whole-cell checkpointing saves more.

    Args:
        num_channels: C.
        activation: what follows the normalisation.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, activation: Activation = "none") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.momentum = MOMENTUM

    def forward(self, x: Tensor, copies: int = 1) -> Tensor:
        """Normalise and activate.

        ``copies``: how often each value counts in the running variance's correction, for an ``x`` that is to be
        enlarged by repetition: normalising before instead of after changes nothing else.
        """
        frozen = getattr(_state, "frozen", False)
        if self.training and num_ranks() > 1:
            return self._over_ranks(x, copies, frozen)
        mean, var = self.running_mean, self.running_var
        corrects = self.training and copies > 1 and not frozen
        if frozen or corrects:  # not None: a checkpoint's recomputation must save as many tensors as its forward pass
            mean, var = mean.clone(), var.clone()
        y = F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, EPS)
        if corrects:
            count = x.numel() // x.shape[1]
            ratio = copies * (count - 1) / (copies * count - 1)  # of the two corrections of the batch's variance
            self.running_mean.copy_(mean)
            self.running_var.mul_((1.0 - ratio) * (1.0 - self.momentum)).add_(var, alpha=ratio)
        return activate(y, self.activation)

    def _over_ranks(self, x: Tensor, copies: int, frozen: bool) -> Tensor:
        """In training between ranks."""
        moments = batch_moments(x)
        if not frozen:
            self.running_mean.lerp_(moments.mean, self.momentum)
            self.running_var.lerp_(moments.unbiased_var(copies), self.momentum)
        return cross_rank_batch_norm(x, self.weight, self.bias, moments, self.activation)

    def extra_repr(self) -> str:
        """Channels and activation, for ``print(model)``."""
        return f"{self.weight.numel()}, activation={self.activation}"


def keep_collectives_out_of_graphs() -> None:
    """Make torch.compile leave what ranks exchange in a batch norm, in both passes, to eager code."""
    BatchNorm._over_ranks = torch.compiler.disable(BatchNorm._over_ranks)  # type: ignore[method-assign]


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """The batch norms of a model in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def batch_norm_penalty(model: nn.Module) -> Tensor:
    """Sum over batch norms of max|gamma|, a scalar (paper, section 3.3)."""
    largest = [norm.weight.abs().max() for norm in batch_norms(model)]
    return torch.stack(largest).sum() if largest else next(model.parameters()).new_zeros(())


Statistics = dict[str, Tensor]


def read_statistics(model: nn.Module) -> Statistics:
    """Copies of all running statistics by buffer name."""
    return {k: v.clone() for k, v in model.state_dict().items() if k.endswith(("running_mean", "running_var"))}


def write_statistics(model: nn.Module, statistics: Statistics) -> None:
    """Put back what :func:`read_statistics` or :func:`reestimate_batch_norm` gave."""
    buffers = dict(model.named_buffers())
    for name, values in statistics.items():
        buffers[name].copy_(values)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, run: Callable[[int], object], num: int) -> Statistics:
    """Estimate running statistics afresh as the plain average over ``num`` batches, in float32.

    Needed to sample below temperature 1, where activations differ from those of training (paper, section 4), and
    after weights were averaged. Returns the new statistics; model, mode and old statistics are left as they were:
    put them to use by :func:`write_statistics`. The published code does this under fp16 autocast: NaN images.

    Args:
        model: holds the batch norms.
        run: one forward pass of batch i, e.g. ``lambda i: model.sample(64, temperature=0.7)``.
        num: batches.
    """
    if num < 1:
        raise ValueError(f"num is {num}; batch-norm statistics need at least 1 batch")
    norms, before, was_training = batch_norms(model), read_statistics(model), model.training
    device_type = next(model.parameters()).device.type
    model.train()
    try:
        for i in range(num):
            for norm in norms:
                norm.momentum = 1.0 / (i + 1)
            with torch.autocast(device_type, enabled=False):
                run(i)
        return read_statistics(model)
    finally:
        for norm in norms:
            norm.momentum = MOMENTUM
        write_statistics(model, before)
        model.train(was_training)
