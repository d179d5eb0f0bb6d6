"""A toy ladder VAE (after Sønderby et al. 2016): a few groups, each at half the resolution of the one below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.decisions import Decision
from metrics.elbo import Group, VAEOutput, terms
from metrics.likelihoods import ImageSpec
from metrics.model import VAE, Features
from metrics.normal import Normal, at_least_float32
from metrics.objective import Loss, Objective
from metrics.pixel_head import PixelHead


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Architecture of a ladder VAE."""

    num_groups: int = 2
    """Groups of latents."""
    hidden_channels: int = 8
    """Channels of every hidden layer."""
    latent_channels: int = 2
    """Latent channels of a group."""


class Ladder(VAE):
    """Hierarchical VAE with one convolution per step up and per step down.

    Args:
        config: groups and channels.
        spec: channels, height, width and num_bits of the images.
    """

    def __init__(self, config: LadderConfig, spec: ImageSpec) -> None:
        super().__init__(spec)
        self.config, self.pixel_head = config, PixelHead(spec=spec)
        hidden, latent, groups = config.hidden_channels, config.latent_channels, range(config.num_groups)
        self.downs = nn.ModuleList(
            nn.Conv2d(hidden if i else spec.channels, hidden, 3, stride=2, padding=1) for i in groups
        )
        self.priors = nn.ModuleList(nn.Conv2d(hidden, 2 * latent, 1) for _ in groups)
        self.posteriors = nn.ModuleList(nn.Conv2d(2 * hidden, 2 * latent, 1) for _ in groups)
        self.merges = nn.ModuleList(nn.Conv2d(hidden + latent, hidden, 3, padding=1) for _ in groups)
        self.pixels = nn.Conv2d(hidden, self.pixel_head.num_parameters, 3, padding=1)
        self.start = nn.Parameter(torch.zeros(hidden, *self.group_shapes[0][1:]))

    @property
    def group_shapes(self) -> list[tuple[int, int, int]]:
        """Latent channels, height and width of each group, top group first."""
        strides = [2**i for i in range(self.config.num_groups, 0, -1)]
        return [(self.config.latent_channels, -(-self.spec.height // s), -(-self.spec.width // s)) for s in strides]

    def bottom_up(self, x: Tensor) -> Features:
        """Feature maps ``[B, hidden_channels, h, w]``, one per group, top group first."""
        self.check_images(x)
        h, maps = x, list[Tensor]()
        for down in self.downs:
            h = F.silu(down(h))
            maps.append(h)
        return Features(tuple(reversed(maps)))

    def top_down(
        self, decisions: Sequence[Decision], features: Features | None = None, num: int | None = None
    ) -> VAEOutput:
        """Latents as decided from the top group to the lowest, and p(x | z)."""
        state, groups = self.start.expand(self.check_decisions(decisions, features, num), -1, -1, -1), list[Group]()
        for i, (decision, shape) in enumerate(zip(decisions, self.group_shapes, strict=True)):
            state = F.interpolate(state, size=shape[1:])
            prior = posterior = _normal(self.priors[i](state))
            if features is not None:
                posterior = _normal(self.posteriors[i](torch.cat([state, features.tensors[i]], dim=1)))
            groups.append(Group(decision.draw(prior, posterior), posterior, prior))
            state = F.silu(self.merges[i](torch.cat([state, groups[-1].z], dim=1)))
        pixels = self.pixels(F.interpolate(state, size=(self.spec.height, self.spec.width)))
        return VAEOutput(self.pixel_head(pixels), groups)


def _normal(parameters: Tensor) -> Normal:
    mean, raw_std = at_least_float32(parameters).chunk(2, dim=1)
    return Normal(mean, F.softplus(raw_std) + 1e-3)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weight of the rate."""

    beta: float = 1.0
    """Weight of the rate in nats."""


class LadderObjective(Objective):
    """distortion + beta * rate."""

    def __init__(self, config: ObjectiveConfig, model: Ladder) -> None:
        super().__init__()
        self.beta, self.noise_shapes = config.beta, model.group_shapes

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]`` in [0, 1]."""
        parts = terms(model(x, noise), x)
        total = (parts.distortion + self.beta * parts.rate).mean()
        named = {"elbo": parts.elbo, "rate": parts.rate, "distortion": parts.distortion}
        return Loss(total, {k: v.detach().mean() for k, v in named.items()}, parts.kl.detach().mean(0))
