"""What running code asks of a model and an objective, whichever family they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from metrics.elbo import VAEOutput
from metrics.likelihoods import ImageSpec


class Features(Protocol):
    """What a bottom-up pass leaves for the posteriors."""

    def repeat(self, times: int) -> Any:
        """Every image ``times`` times in a row along the batch."""


class VAE(Protocol):
    """A variational autoencoder; also a ``torch.nn.Module``."""

    @property
    def spec(self) -> ImageSpec:
        """The images that it models."""

    @property
    def group_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shape of each group's latents without the batch, top group first."""

    def __call__(self, x: Tensor, noise: Sequence[Tensor] | None = None) -> VAEOutput:
        """Beliefs about images [B, C, H, W] in [0, 1], latents drawn with ``noise``."""

    def encode(self, x: Tensor) -> list[Tensor]:
        """Posterior means, propagated top-down."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """The likelihood's mean at the posterior means, [B, C, H, W] in [0, 1]."""

    def sample(
        self,
        num: int,
        temperature: float = 1.0,
        *,
        pixels: Literal["mean", "sample"] = "mean",
        generator: torch.Generator | None = None,
        pixel_temperature: float = 1.0,
    ) -> Tensor:
        """Images drawn from the prior."""

    def compile_parts(self) -> None:
        """Compile the repeated parts in place (torch.compile), for training."""

    def bottom_up(self, x: Tensor) -> Features:
        """Everything that the posteriors need of the images; shared over several draws."""

    def from_features(self, features: Any, noise: Sequence[Tensor] | None = None) -> VAEOutput:
        """The forward pass after ``bottom_up``."""


class Loss(Protocol):
    """What an objective makes of a batch."""

    @property
    def total(self) -> Tensor:
        """Scalar to minimise, nats per image."""

    @property
    def terms(self) -> Mapping[str, Tensor]:
        """Detached scalars worth watching."""

    @property
    def kl_per_group(self) -> Tensor:
        """[L], nats per image, detached."""


class Objective(Protocol):
    """Weights the ELBO's terms; also a ``torch.nn.Module`` whose buffers belong into checkpoints."""

    @property
    def noise_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes, without the batch, of the standard-normal tensors that a step wants; the model's groups come first."""

    def after_step(self, skipped: bool | Tensor) -> None:
        """Called after each optimiser step, taken or skipped: for what an objective trains of its own.

        ``skipped`` may be a bool tensor on the device: an objective that looks at it waits for the device.
        """

    def __call__(self, model: Any, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """The loss of a batch at optimiser step ``step``."""


def as_module(model: Any) -> torch.nn.Module:
    """A VAE as the module that it is."""
    assert isinstance(model, torch.nn.Module)
    return model
