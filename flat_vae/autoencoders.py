"""Autoencoders: distortion without a rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flat_vae.base import FlatObjective, loss_of
from flat_vae.model import FlatVAE
from metrics.elbo import terms
from metrics.objective import Loss


class Autoencoder(FlatObjective):
    """Distortion of the image that is decoded from the posterior's mean, without a rate.

    The posterior's variance is not trained. Rate and elbo are reported, but the elbo is not a useful bound.
    """

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]``."""
        return self._decode_mean(model, x, x)

    def _decode_mean(self, model: nn.Module, seen: Tensor, x: Tensor) -> Loss:
        no_noise = seen.new_zeros(len(seen), *self.noise_shapes[0])
        parts = terms(model(seen, [no_noise]), x)
        return loss_of(parts.distortion.mean(), parts.distortion, parts.rate)


class DenoisingAutoencoder(Autoencoder):
    """Autoencoder that reconstructs the clean image from a corrupted one (Vincent et al. 2008).

    Args:
        model: the bare model.
        corruption: "zero" sets pixels (all channels) to zero, "gaussian" adds noise.
        amount: fraction of zeroed pixels, or standard deviation of the noise.
    """

    def __init__(self, model: FlatVAE, corruption: str, amount: float) -> None:
        if corruption == "zero" and amount > 1.0:
            raise ValueError(f"--corruption-amount {amount} is the fraction of zeroed pixels; give a number in [0, 1]")
        spec = model.spec
        channels = 1 if corruption == "zero" else spec.channels
        super().__init__(model, (channels, spec.height, spec.width))
        self.corruption, self.amount = corruption, amount

    def corrupt(self, x: Tensor, noise: Tensor) -> Tensor:
        """Corrupted images, computed from standard-normal ``noise``."""
        if self.corruption == "gaussian":
            return x + self.amount * noise
        uniform: Tensor = torch.special.ndtr(noise)
        return x * (uniform >= self.amount)

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of clean images ``[B, C, H, W]``."""
        return self._decode_mean(model, self.corrupt(x, self.drawn(x, noise)[1]), x)
