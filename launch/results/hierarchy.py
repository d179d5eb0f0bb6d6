"""Every model as a hierarchy of groups: what coding and editing of latents ask of NVAE and of a flat VAE alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from flat_vae import FlatVAE
from launch.training.model import VAE
from metrics.elbo import Group, VAEOutput
from metrics.normal import Normal
from nvae import NVAE
from nvae.posterior import Decision


class Hierarchy(Protocol):
    """Groups of latents ``[B, C, H, W]``, top group first, decided one after another on the way to the image."""

    @property
    def group_shapes(self) -> Sequence[tuple[int, ...]]:
        """``(C, H, W)`` of each group."""

    def bottom_up(self, x: Tensor) -> Any:
        """What the posteriors need of images ``[B, C, H, W]`` in [0, 1]."""

    def top_down(self, decisions: Sequence[Decision], features: Any | None = None, num: int | None = None) -> VAEOutput:
        """Take each group's latents as decided; without ``features``, posteriors are the priors of ``num`` images."""


class OneGroup:
    """A flat VAE as a hierarchy of one group, its D latents a map of D channels and one position."""

    def __init__(self, model: FlatVAE) -> None:
        self.model = model

    @property
    def group_shapes(self) -> list[tuple[int, int, int]]:
        """``[(D, 1, 1)]``."""
        return [(self.model.config.latent_dim, 1, 1)]

    def bottom_up(self, x: Tensor) -> Normal:
        """The posterior of images, tensors ``[B, D, 1, 1]``."""
        posterior = self.model.bottom_up(x).posterior
        return Normal(posterior.mean[..., None, None], posterior.std[..., None, None])

    def top_down(
        self, decisions: Sequence[Decision], features: Normal | None = None, num: int | None = None
    ) -> VAEOutput:
        """The group's latents as decided, and p(x | z)."""
        batch = len(features.mean) if features is not None else num
        assert batch is not None
        assert len(decisions) == 1
        zeros = self.model.mean.weight.new_zeros(batch, *self.group_shapes[0])
        prior = Normal(zeros, torch.ones_like(zeros))
        posterior = prior if features is None else features
        z = decisions[0].draw(prior, posterior)
        return VAEOutput(self.model.decode([z.flatten(1)]), [Group(z, posterior, prior)])


def hierarchy_of(model: VAE) -> Hierarchy:
    """``model`` as a hierarchy."""
    if isinstance(model, FlatVAE):
        return OneGroup(model)
    assert isinstance(model, NVAE)
    return model
