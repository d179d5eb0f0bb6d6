"""Grouped-VAE: the image is decoded from growing sets of latents, so that each group adds to the groups before it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from flat_vae.base import FlatObjective, loss_of, ramp
from flat_vae.model import FlatVAE
from metrics.elbo import VAEOutput, sum_over_event
from metrics.objective import Loss


class GroupedVAE(FlatObjective):
    """Sum over i of the distortion of images decoded from groups 1..i, + beta * rate (the Grouped-VAE report).

    Term i decodes (z_1..z_i, 0..0). Its gradient reaches the whole decoder, but the encoder only through z_i: group i
    learns what the groups before it do not explain.

    Args:
        model: the bare model.
        sizes: latents of each group; None: two halves.
        beta: weight of the rate in nats.
        warmup_steps: steps over which beta rises linearly from 0.

    Raises:
        ValueError: the sizes do not add up to the model's latents.
    """

    batched = ("beta",)

    def __init__(self, model: FlatVAE, sizes: Sequence[int] | None, beta: float, warmup_steps: float = 0.0) -> None:
        super().__init__(model)
        num_latents = model.config.latent_dim
        if sizes is None:
            sizes = (num_latents - num_latents // 2, num_latents // 2)
        if sum(sizes) != num_latents or min(sizes) < 1:
            raise ValueError(
                f"latent groups {tuple(sizes)} for {num_latents} latents; give positive sizes that add up to {num_latents}"
            )
        self.ends = list(accumulate(sizes))
        self.beta, self.warmup_steps = beta, warmup_steps

    def view(self, z: Tensor) -> Tensor:
        """Inputs of the decoder, group by group: ``[B, D] -> [G * B, D]``."""
        views = []
        for start, end in pairwise([0, *self.ends]):
            hidden = z.new_zeros(len(z), z.shape[1] - end)
            views.append(torch.cat([z[:, :start].detach(), z[:, start:end], hidden], dim=1))
        return torch.cat(views)

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]`` at an optimiser step; distortion and elbo are those with all groups."""
        beta = self.beta * ramp(step, self.warmup_steps)
        output: VAEOutput = model(x, self.drawn(x, noise), self.view)
        num_groups = len(self.ends)
        distortions = -output.likelihood.log_prob(x.repeat(num_groups, 1, 1, 1)).unflatten(
            0, (num_groups, -1)
        )  # [G, B]
        rate = sum_over_event(output.groups[0].kl())
        total = (distortions.sum(0) + beta * rate).mean()
        each = {f"distortion_groups_to_{i + 1}": value for i, value in enumerate(distortions.mean(1))}
        return loss_of(total, distortions[-1], rate, beta=beta, **each)
