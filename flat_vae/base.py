"""The base of the objectives of flat VAEs.

An objective is called with the model (bare, or wrapped in DistributedDataParallel), images, step and noise, and returns
a :class:`metrics.objective.Loss` in nats per image. ``noise_shapes`` lists the standard-normal tensors that it needs,
those of the latents first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flat_vae.model import FlatVAE
from metrics.objective import Loss, Objective


def loss_of(total: Tensor, distortion: Tensor, rate: Tensor, **added: Tensor | float) -> Loss:
    """Loss with ``distortion`` and ``rate`` [B] among its terms, and further scalars to log."""
    distortion, rate = distortion.detach().mean(), rate.detach().mean()
    named = {"elbo": -(distortion + rate), "rate": rate, "distortion": distortion}
    scalars = {  # filled on the device, because a copy from the host would wait for it
        name: value if isinstance(value, Tensor) else torch.full((), value, dtype=total.dtype, device=total.device)
        for name, value in added.items()
    }
    return Loss(total, named | {name: value.detach() for name, value in scalars.items()}, rate.unsqueeze(0))


def ramp(step: int, num_steps: float) -> float:
    """Linear rise from 0 at step 0 to 1 at ``num_steps``; constant 1 if ``num_steps`` is 0."""
    return min(step / num_steps, 1.0) if num_steps > 0 else 1.0


class FlatObjective(Objective):
    """Base of the objectives. The trainer optimises none of its parameters.

    A subclass lists in ``batched`` the weights that may be tensors with one value for each of several models trained as
    one (see :class:`flat_vae.replicas.Replicas`): those that are used only in arithmetic.

    Args:
        model: the bare model.
        extra_noise: shapes, without the batch, of standard-normal tensors that the objective needs after the latents'.
    """

    batched: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: FlatVAE, *extra_noise: tuple[int, ...]) -> None:
        super().__init__()
        self.noise_shapes = [*model.group_shapes, *extra_noise]

    def drawn(self, x: Tensor, noise: Sequence[Tensor] | None) -> list[Tensor]:
        """The given noise, or fresh standard-normal tensors if it is None."""
        if noise is None:
            return [torch.randn(len(x), *shape, device=x.device) for shape in self.noise_shapes]
        if len(noise) != len(self.noise_shapes):
            raise ValueError(f"{len(noise)} noise tensors; give {len(self.noise_shapes)}, shapes {self.noise_shapes}")
        return list(noise)
