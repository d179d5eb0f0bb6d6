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
    """Distortion of the image decoded from the posterior's mean; no rate.

    The posterior's variance is never trained, so rate and elbo of an autoencoder are reported but bound nothing.
    """

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]``."""
        return self._decode_mean(model, x, x)

    def _decode_mean(self, model: nn.Module, seen: Tensor, x: Tensor) -> Loss:
        no_noise = seen.new_zeros(len(seen), *self.noise_shapes[0])
        parts = terms(model(seen, [no_noise]), x)
        return loss_of(parts.distortion.mean(), parts.distortion, parts.rate)


class DenoisingAutoencoder(Autoencoder):
    """Autoencoder that sees a corrupted image and is to give the clean one (Vincent et al. 2008).

    Args:
        model: the bare model.
        corruption: "zero" sets pixels (all channels) to zero, "gaussian" adds noise.
        amount: rate of zeroed pixels, or std of the noise.
    """

    def __init__(self, model: FlatVAE, corruption: str, amount: float) -> None:
        if corruption == "zero" and amount > 1.0:
            raise ValueError(f"--corruption-amount {amount} is the rate of zeroed pixels; give a number in [0, 1]")
        spec = model.spec
        channels = 1 if corruption == "zero" else spec.channels
        super().__init__(model, (channels, spec.height, spec.width))
        self.corruption, self.amount = corruption, amount

    def corrupt(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images as the encoder sees them, from standard-normal ``noise``."""
        if self.corruption == "gaussian":
            return x + self.amount * noise
        uniform: Tensor = torch.special.ndtr(noise)
        return x * (uniform >= self.amount)

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of clean images ``[B, C, H, W]``."""
        return self._decode_mean(model, self.corrupt(x, self.drawn(x, noise)[1]), x)
