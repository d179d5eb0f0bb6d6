"""FactorVAE: total correlation estimated by the density ratio of a discriminator (Kim & Mnih 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from flat_vae.base import FlatObjective, loss_of
from flat_vae.model import FlatVAE
from metrics.elbo import VAEOutput, terms
from metrics.objective import Loss

HIDDEN_UNITS, HIDDEN_LAYERS = 1000, 6


def discriminator(num_latents: int) -> nn.Sequential:
    """Discriminator of latents from q(z) and from the product of its marginals: six layers of 1,000 units, two logits."""
    layers: list[nn.Module] = []
    width = num_latents
    for _ in range(HIDDEN_LAYERS):
        layers += [nn.Linear(width, HIDDEN_UNITS), nn.LeakyReLU(0.2)]
        width = HIDDEN_UNITS
    return nn.Sequential(*layers, nn.Linear(width, 2))


def permute_dims(z: Tensor, noise: Tensor) -> Tensor:
    """Permute each column of ``z`` [B, D] on its own, by the order of the same column of ``noise`` (Kim & Mnih 2018)."""
    return z.gather(0, noise.argsort(dim=0))


class FactorVAE(FlatObjective):
    """distortion + rate + gamma * TC, TC = mean over q(z) of log D(z) - log(1 - D(z)) (Kim & Mnih 2018).

    The discriminator belongs to the objective: its weights and its Adam(1e-4; .5, .9) are in ``state_dict``. It learns
    from the batch of the VAE, permuted by the noise; the paper draws a second batch for it. It takes one step
    for each step of the VAE that is not skipped. With several processes its gradient is averaged over them, and the
    permutation is within each local batch. The processes must build discriminator and model from the same seed.

    Args:
        model: the bare model.
        gamma: weight of the total correlation.
    """

    def __init__(self, model: FlatVAE, gamma: float) -> None:
        super().__init__(model, (model.config.latent_dim,))
        self.gamma = gamma
        self.discriminator = discriminator(model.config.latent_dim)
        self._parameters_in_order = list(self.discriminator.parameters())
        self.optimizer = torch.optim.Adam(self._parameters_in_order, lr=1e-4, betas=(0.5, 0.9))
        self._num_batches = 0  # batches whose gradients have been summed since the last step

    def log_density_ratio(self, z: Tensor) -> Tensor:
        """log q(z) - log prod_j q(z_j) by the discriminator, [B]; gradients reach only ``z``."""
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        logits: Tensor = functional_call(self.discriminator, fixed, (z,))
        return logits[:, 0] - logits[:, 1]

    def discriminator_loss(self, z: Tensor, permuted: Tensor) -> Tensor:
        """Mean cross entropy in nats of classifying ``z`` against ``permuted``; log 2 at chance level."""
        logits = self.discriminator(torch.cat([z, permuted]).detach())
        is_permuted = torch.arange(2, device=z.device).repeat_interleave(len(z))
        return F.cross_entropy(logits, is_permuted)

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]``; in training, keep the discriminator's gradient for :meth:`after_step`."""
        latent_noise, order = self.drawn(x, noise)
        output: VAEOutput = model(x, [latent_noise])
        parts = terms(output, x)
        z = output.groups[0].z
        with torch.autocast(z.device.type, enabled=False):
            total_correlation = self.log_density_ratio(z).mean()
            adversarial = self.discriminator_loss(z, permute_dims(z, order))
        if model.training and torch.is_grad_enabled():
            self._accumulate(adversarial)
        total = (parts.distortion + parts.rate).mean() + self.gamma * total_correlation
        return loss_of(
            total, parts.distortion, parts.rate, total_correlation=total_correlation, discriminator=adversarial
        )

    def _accumulate(self, adversarial: Tensor) -> None:
        gradients = torch.autograd.grad(adversarial, self._parameters_in_order)
        for parameter, gradient in zip(self._parameters_in_order, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._num_batches += 1

    @torch.no_grad()
    def after_step(self, skipped: bool | Tensor) -> None:
        """Step the discriminator on the mean gradient over all batches and processes, unless the step was skipped."""
        if not skipped and self._num_batches:
            world_size = dist.get_world_size() if dist.is_initialized() else 1
            for parameter in self._parameters_in_order:
                assert parameter.grad is not None
                if world_size > 1:
                    dist.all_reduce(parameter.grad)
                parameter.grad /= self._num_batches * world_size
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._num_batches = 0

    def get_extra_state(self) -> dict[str, Any]:
        """The optimiser's moments: tensors and plain data."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the optimiser's moments from :meth:`get_extra_state`."""
        self.optimizer.load_state_dict(state)
