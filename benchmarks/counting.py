"""Counts that speed depends on: dispatched operations, the bytes that they touch, FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from launch.results.cost import Counts, OperationCounter

__all__ = ["Counts", "OperationCounter", "count", "flops", "saved_bytes", "step_flops"]


def count(work: Callable[[], object]) -> Counts:
    """Operations of ``work``, run once."""
    counter = OperationCounter()
    with counter:
        work()
    return counter.counts


def flops(work: Callable[[], object]) -> int:
    """FLOPs of matrix products and convolutions in ``work``, run once; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def step_flops(forward: Callable[[], object]) -> int:
    """FLOPs of a training step without recomputation: three times the forward pass.

    torch's counter takes the weight gradient of a depthwise convolution for that of a dense one.
    """
    return 3 * flops(forward)


def saved_bytes(forward: Callable[[], Tensor], parameters: Sequence[Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once, parameters left out."""
    owned = {p.untyped_storage().data_ptr() for p in parameters}
    seen: dict[int, int] = {}
    kept: list[Tensor] = []  # alive while counting, so that no address is used twice

    def save(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in owned and address not in seen:
            kept.append(tensor)
            seen[address] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(seen.values())
