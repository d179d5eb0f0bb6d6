"""Batch norm across ranks with CUDA's kernels, emulated by formulas: the exchanges and the gradients around them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nvae import cross_rank
from nvae.activations import Activation
from nvae.cross_rank import EPS, device_batch_norm, equal_counts, exchange_on_device

RANKS, MOMENTUM = 3, 0.05


def _wide(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), torch.rsqrt(x.var((0, 2, 3), correction=0) + eps)


def gather_stats(
    x: Tensor, means: Tensor, inverse_stds: Tensor, running_mean: Tensor, running_var: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    momentum, eps, counts = rest
    assert counts.dtype == running_mean.dtype  # CUDA reads them as numbers of this type
    share = (counts / counts.sum()).unsqueeze(1)
    mean = (share * means).sum(0)
    var = (share * (inverse_stds**-2 - eps + (means - mean) ** 2)).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
    return mean, torch.rsqrt(var + eps)


def elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_std: Tensor, eps: float) -> Tensor:
    return (x - _wide(mean)) * _wide(inverse_std * weight) + _wide(bias)


def backward_reduce(grad: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor, *_: Any) -> tuple[Tensor, ...]:
    to_mean, to_deviation = grad.sum((0, 2, 3)), (grad * (x - _wide(mean))).sum((0, 2, 3))
    return to_mean, to_deviation, to_deviation * inverse_std, to_mean


def backward_elemt(grad: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    sum_dy, sum_dy_xmu, counts = rest
    assert counts.dtype == torch.int32
    slope = sum_dy_xmu / counts.sum() * inverse_std**2
    return (grad - _wide(sum_dy / counts.sum()) - (x - _wide(mean)) * _wide(slope)) * _wide(inverse_std * weight)


KERNELS: dict[str, Callable[..., Any]] = {
    "batch_norm_stats": stats,
    "batch_norm_gather_stats_with_counts": gather_stats,
    "batch_norm_elemt": elemt,
    "batch_norm_backward_reduce": backward_reduce,
    "batch_norm_backward_elemt": backward_elemt,
}


class Threads:
    """Collectives between threads."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(RANKS, timeout=30)
        self.sent: list[Tensor] = [torch.empty(0)] * RANKS
        self.me = threading.local()
        self.num_collectives = 0

    def _everyone(self, mine: Tensor) -> list[Tensor]:
        self.sent[self.me.rank] = mine.clone()
        self.num_collectives += self.me.rank == 0
        self.barrier.wait()
        found = list(self.sent)
        self.barrier.wait()
        return found

    def all_gather_into_tensor(self, everyone: Tensor, mine: Tensor) -> None:
        everyone.copy_(torch.cat(self._everyone(mine)))

    def all_reduce(self, mine: Tensor) -> None:
        mine.copy_(torch.stack(self._everyone(mine)).sum(0))


@pytest.mark.parametrize("activation", ["none", "silu", "elu"])
def test_ranks_normalise_as_one_process_does(activation: Activation, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 4, 3, 5, generator=generator, dtype=torch.float64) * 2.0 + 3.0
    upstream = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    weight, bias = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    threads = Threads()
    for name, formula in KERNELS.items():
        monkeypatch.setattr(torch, name, formula)
    monkeypatch.setattr(cross_rank, "num_ranks", lambda: RANKS)
    monkeypatch.setattr(cross_rank, "dist", threads)

    def step(rank: int) -> list[Tensor]:
        threads.me.rank = rank
        x, w, b = (t.detach().clone().requires_grad_() for t in (whole.chunk(RANKS)[rank], weight, bias))
        running = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
        y = device_batch_norm(x, w, b, exchange_on_device(x, *running, MOMENTUM), activation)
        return [y.detach(), *torch.autograd.grad(y, (x, w, b), upstream.chunk(RANKS)[rank]), *running]

    with ThreadPoolExecutor(RANKS) as pool:
        ranks = list(pool.map(step, range(RANKS)))
    assert threads.num_collectives == 2  # one in each pass

    x, w, b = (t.clone().requires_grad_() for t in (whole, weight, bias))
    running = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    y = F.batch_norm(x, *running, w, b, training=True, momentum=MOMENTUM, eps=EPS)
    y = {"none": y, "silu": F.silu(y), "elu": F.elu(y)}[activation]
    alone = [y.detach(), *torch.autograd.grad(y, (x, w, b), upstream), *running]
    found = [torch.cat(rows) for rows in list(zip(*ranks, strict=True))[:2]]
    found += [sum(parts) for parts in list(zip(*ranks, strict=True))[2:4]]  # as a gradient's mean over ranks has it
    for mine, expected in zip([*found, *ranks[0][4:]], alone, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_the_counts_of_a_size_are_one_tensor_that_training_may_keep() -> None:
    with torch.inference_mode():
        first = equal_counts(7, 2, torch.int32, torch.device("cpu"))
    assert not first.is_inference()
    assert first.tolist() == [7, 7]
    assert equal_counts(7, 2, torch.int32, torch.device("cpu")) is first
