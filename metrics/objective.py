"""The training objective as the trainer sees it: a callable that weights the terms of the ELBO into a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn


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


class Objective(nn.Module, ABC):
    """Weights of the ELBO's terms. Its state belongs in checkpoints; the model is not part of it.

    Attributes:
        noise_shapes: shapes, without the batch, of the standard-normal tensors that a step needs; the model's groups
            come first.
    """

    noise_shapes: Sequence[tuple[int, ...]]

    if TYPE_CHECKING:  # nn.Module types its call as Any

        def __call__(self, *args: Any, **kwargs: Any) -> Loss:
            """Loss of a batch, see :meth:`forward`."""

    @abstractmethod
    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of a batch at an optimiser step.

        Args:
            model: the model to call, perhaps wrapped in DistributedDataParallel.
            x: images ``[B, C, H, W]`` in [0, 1].
            step: number of the optimiser step, from 0.
            noise: one standard-normal tensor ``[B, *shape]`` per shape of ``noise_shapes``; None draws it.
        """

    def path(self, step: int) -> Hashable:
        """Name the operations of a loss at ``step``; None if they contain numbers that depend on the step.

        Losses along one path differ only in tensors that :meth:`prepare` fills, so that a recording of one serves all.
        By default numbers are taken from the step, and no recording serves two.
        """
        return None

    def prepare(self, step: int) -> None:
        """Copy values that depend on the step to the device; by default a loss computes them from its step."""

    def one_step(self, num_batches: int) -> AbstractContextManager[None]:
        """Return a context for the losses and backward passes of a step's batches, in which they may share work."""
        return nullcontext()

    def after_step(self, skipped: bool | Tensor) -> None:
        """Finish an optimiser step that was taken or skipped; by default there is nothing to do.

        An objective that trains parameters of its own acts here. ``skipped`` may be a bool tensor on the device; an
        objective that reads it waits for the device.
        """
