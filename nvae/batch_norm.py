"""Batch normalisation followed by an activation: statistics over all ranks, and re-estimation of statistics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvae.activations import Activation, activate
from nvae.cross_rank import (
    EPS,
    batch_moments,
    cross_rank_batch_norm,
    device_batch_norm,
    exchange_on_device,
    num_ranks,
    once,
)
from nvae.sharing import given

MOMENTUM = 0.05  # new = 0.95 * old + 0.05 * batch, as published

_state = threading.local()


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Context in which the batch norms of this thread use the batch's statistics but do not move the running ones."""
    before = getattr(_state, "frozen", False)
    _state.frozen = True
    try:
        yield
    finally:
        _state.frozen = before


class BatchNorm(nn.Module):
    """Batch normalisation over ``[B, C, H, W]`` followed by an activation.

    Training uses the statistics of the batch over all ranks, computed in float32 also under autocast, and moves the
    running statistics by 5 % towards them (with unbiased variance). Evaluation uses the running statistics. With
    several ranks only the input is kept for the backward pass. A single process uses PyTorch's operations, which keep more
    but are a fifth faster; to save memory there, checkpoint whole cells.

    Args:
        num_channels: C.
        activation: activation after the normalisation.
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

        ``copies`` is the number of times that upsampling will repeat each value. Normalising before the repetition
        instead of after it changes only Bessel's correction of the running variance.
        """
        shared = given(self)
        weight = self.weight if shared is None else shared.weight
        if self.training and num_ranks() > 1:
            return self._over_ranks(x, weight, copies)
        mean, var = self._statistics_to_move(copies)
        y = F.batch_norm(x, mean, var, weight, self.bias, self.training, self.momentum, EPS)
        if self.training:
            self._take(mean, var, x.numel() // x.shape[1], copies)
        return activate(y, self.activation)

    def _statistics_to_move(self, copies: int) -> tuple[Tensor, Tensor]:
        """The running statistics, or copies of them for an operation that must not move them."""
        mean, var = self.running_mean, self.running_var
        if _is_frozen() or (self.training and copies > 1):
            # not None, because the recomputation of a checkpoint must save as many tensors as its forward pass
            mean, var = mean.clone(), var.clone()
        return mean, var

    def _take(self, mean: Tensor, var: Tensor, count: int, copies: int) -> None:
        """Store the updated copies; the batch's variance is corrected for ``count`` values that each occur ``copies`` times."""
        if copies == 1 or _is_frozen():
            return
        # Bessel's correction for copies * count values over the one for count values, which PyTorch applied
        ratio = copies * (count - 1) / (copies * count - 1)
        self.running_mean.copy_(mean)
        self.running_var.mul_((1.0 - ratio) * (1.0 - self.momentum)).add_(var * ratio)

    def _over_ranks(self, x: Tensor, weight: Tensor, copies: int) -> Tensor:
        """Normalise in training on several ranks."""
        if x.is_cuda and not torch.compiler.is_compiling():  # the compiler fuses plain operations itself
            mean, var = self._statistics_to_move(copies)
            found = once(lambda: exchange_on_device(x, mean, var, self.momentum))
            self._take(mean, var, num_ranks() * x.numel() // x.shape[1], copies)
            return device_batch_norm(x, weight, self.bias, found, self.activation)
        moments = once(lambda: batch_moments(x))
        if not _is_frozen():
            self.running_mean.lerp_(moments.mean, self.momentum)
            self.running_var.lerp_(moments.unbiased_var(copies), self.momentum)
        return cross_rank_batch_norm(x, weight, self.bias, moments, self.activation)

    def extra_repr(self) -> str:
        """Channels and activation, for ``print(model)``."""
        return f"{self.weight.numel()}, activation={self.activation}"


def _is_frozen() -> bool:
    frozen: bool = getattr(_state, "frozen", False)
    return frozen


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """Batch norms of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def norms_by_width(model: nn.Module) -> list[list[BatchNorm]]:
    """Batch norms of a model by their number of channels."""
    widths: dict[int, list[BatchNorm]] = {}
    for norm in batch_norms(model):
        widths.setdefault(norm.weight.numel(), []).append(norm)
    return list(widths.values())


def sum_of_largest(scales: Sequence[Tensor]) -> Tensor:
    """Sum of max|gamma| over stacks [N, C] of batch norms' scales, a scalar (paper, section 3.3)."""
    return torch.stack([stack.abs().amax(1).sum() for stack in scales]).sum()


def batch_norm_penalty(model: nn.Module) -> Tensor:
    """Sum of max|gamma| over the batch norms of a model, a scalar; 0 if there are none."""
    scales = [torch.stack([norm.weight for norm in norms]) for norms in norms_by_width(model)]
    return sum_of_largest(scales) if scales else next(model.parameters()).new_zeros(())


Statistics = dict[str, Tensor]


def read_statistics(model: nn.Module) -> Statistics:
    """Copies of all running statistics by buffer name."""
    return {k: v.clone() for k, v in model.state_dict().items() if k.endswith(("running_mean", "running_var"))}


def write_statistics(model: nn.Module, statistics: Statistics) -> None:
    """Set the running statistics to those of :func:`read_statistics` or :func:`reestimate_batch_norm`."""
    buffers = dict(model.named_buffers())
    for name, values in statistics.items():
        buffers[name].copy_(values)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, run: Callable[[int], object], num: int) -> Statistics:
    """Re-estimate running statistics as the plain average over ``num`` batches, in float32.

    This is needed for samples below temperature 1, where activations differ from those in training (paper, section 4), and
    after weights were averaged. The model, its mode and its statistics do not change; apply the returned statistics
    with :func:`write_statistics`. The published code does this under fp16 autocast, which gives NaN images.

    Args:
        model: model with batch norms.
        run: forward pass number i, e.g. ``lambda i: model.sample(64, temperature=0.7)``.
        num: number of passes.
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
