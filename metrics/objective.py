"""The training objective as the trainer sees it: a callable that weights the terms of the ELBO into a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A training loss and its parts.

    Args:
        total: scalar to differentiate: nats per image, mean over the local batch, plus any penalties.
        terms: detached scalars of the local batch by name. Every objective reports elbo, rate and distortion (nats per
            image, unweighted) and adds its own, such as penalties and the current weight of the KL.
        kl_per_group: mean KL of each group in nats, top group first, [L], detached.
    """

    total: Tensor
    terms: dict[str, Tensor]
    kl_per_group: Tensor


class Objective(Protocol):
    """Weights of the ELBO's terms; also a ``torch.nn.Module`` whose buffers belong in checkpoints."""

    @property
    def noise_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes, without the batch, of the standard-normal tensors that a step needs; the model's groups come first."""

    def after_step(self, skipped: bool | Tensor) -> None:
        """Finish an optimiser step that was taken or skipped, for objectives that train parameters of their own.

        ``skipped`` may be a bool tensor on the device; an objective that reads it waits for the device.
        """

    def __call__(self, model: Any, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of a batch at optimiser step ``step``; ``model`` may be wrapped, e.g. in DistributedDataParallel."""
