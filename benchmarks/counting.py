"""Counts on which speed depends: dispatched operations, the bytes that they touch, and FLOPs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import datasets
from launch.families.nvae import NVAETrainConfig
from launch.training import memory
from metrics.elbo import terms
from nvae import NVAE


def _bytes(values: Any) -> int:
    return sum(v.numel() * v.element_size() for v in tree_leaves(values) if isinstance(v, Tensor))


@dataclass
class Counts:
    """Dispatched operations, without views and allocations, which launch no kernel."""

    operations: int = 0
    bytes: int = 0
    by_name: Counter[str] = field(default_factory=Counter)


class OperationCounter(TorchDispatchMode):
    """Counts operations that compute, and the bytes of their arguments and results (as if nothing stayed in a cache)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run and count one operation."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name in ("empty", "empty_like", "new_empty", "detach", "empty_strided")):
            self.counts.operations += 1
            self.counts.bytes += _bytes([args, kwargs or {}, result])
            self.counts.by_name[name] += 1
        return result


@dataclass(frozen=True)
class Work:
    """Counts for the ELBO of a batch and its gradients; the fitted rates account for penalties and the optimiser."""

    operations: int
    gflop: float
    gb_touched: float


def count_work(config: NVAETrainConfig, spec: datasets.ImageSpec, batch_size: int) -> Work:
    """Count on the meta device, fp32, without recomputation; FLOPs are three times those of the forward pass."""
    with torch.device("meta"):
        model = NVAE(memory.with_checkpointing(config, on=False).model, spec).train()
        x = torch.rand(batch_size, spec.channels, spec.height, spec.width)
        noise = [torch.randn(batch_size, *shape) for shape in model.group_shapes]
        with OperationCounter() as counter:
            terms(model(x, noise), x).elbo.mean().backward()
        with FlopCounterMode(display=False) as flops:
            model(x, noise)
    return Work(counter.counts.operations, 3.0 * float(flops.get_total_flops()) / 1e9, counter.counts.bytes / 1e9)


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
