"""Every model as a hierarchy of groups: what coding and editing of latents ask of NVAE and of a flat VAE alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from flat_vae import FlatVAE
from launch.training import model as running
from metrics.decisions import Decision, PosteriorMean
from metrics.elbo import Group, VAEOutput
from metrics.model import VAE, Features
from metrics.normal import Normal


class OneGroup(VAE):
    """A flat VAE as a hierarchy of one group, its D latents a map of D channels and one position."""

    def __init__(self, model: FlatVAE) -> None:
        super().__init__(model.spec)
        self.model = model

    @property
    def group_shapes(self) -> list[tuple[int, int, int]]:
        """``[(D, 1, 1)]``."""
        return [(self.model.config.latent_dim, 1, 1)]

    def bottom_up(self, x: Tensor) -> Features:
        """Features of the flat model."""
        return self.model.bottom_up(x)

    def top_down(
        self, decisions: Sequence[Decision], features: Features | None = None, num: int | None = None
    ) -> VAEOutput:
        """The group's latents as decided, and p(x | z)."""
        flat = self.model.descend([PosteriorMean()], features, num)[0]
        prior, posterior = (
            Normal(b.mean[..., None, None], b.std[..., None, None]) for b in (flat.prior, flat.posterior)
        )
        z = decisions[0].draw(prior, posterior)
        return VAEOutput(self.model.decode([z.flatten(1)]), [Group(z, posterior, prior)])


Hierarchy = VAE


def hierarchy_of(model: running.VAE) -> VAE:
    """``model`` as a hierarchy."""
    return OneGroup(model) if isinstance(model, FlatVAE) else cast(VAE, model)
