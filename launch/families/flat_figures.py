"""Pictures of a flat VAE's latents: traversals, the latent plane, KL of each latent, aggregate posterior and prior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from launch.console import figures
from launch.console.figures import Picture
from launch.machine import noise
from metrics.model import VAE

ENCODED_AT_ONCE = 64
MOST_TRAVERSED = 16  # latents, those with the highest KL
TRAVERSED = (-2.5, 2.5)  # in standard deviations of the prior
STEPS = 11
PLANE_SIDE = 12
SCATTERED = 5000  # points of the aggregate posterior


@dataclass(frozen=True)
class Codes:
    """Posteriors of N images on the CPU: mean and std, each [N, D]."""

    mean: Tensor
    std: Tensor

    @property
    def kl(self) -> Tensor:
        """KL to the prior in nats, [N, D]."""
        return 0.5 * (self.mean.square() + self.std.square() - 1.0) - self.std.log()

    @property
    def order(self) -> list[int]:
        """Latents by mean KL, highest first."""
        return self.kl.mean(0).argsort(descending=True).tolist()

    def draw(self, num: int, source: torch.Generator) -> Tensor:
        """Samples [num, D] of the aggregate posterior, drawn from the images' posteriors in turn."""
        rows = torch.arange(num) % len(self.mean)
        return self.mean[rows] + self.std[rows] * torch.randn(num, self.mean.shape[1], generator=source)


def encode(model: VAE, x: Tensor) -> Codes:
    """Posteriors of images [N, C, H, W] in [0, 1]."""
    parts = [model.groups_at_means(batch)[0].posterior for batch in x.split(ENCODED_AT_ONCE)]
    return Codes(torch.cat([p.mean for p in parts]).cpu(), torch.cat([p.std for p in parts]).cpu())


def _decode(model: VAE, z: Tensor) -> Tensor:
    """Mean images of latents [N, D], on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model.decode([part.to(device)]).mean.cpu() for part in z.split(ENCODED_AT_ONCE)])


def traversal(model: VAE, codes: Codes, image: int = 0, *, title: str = "") -> Picture:
    """A row per latent, highest KL first: it moves through the prior's range, and the others stay at the image's means."""
    latents, kl = codes.order[:MOST_TRAVERSED], codes.kl.mean(0)
    values = torch.linspace(*TRAVERSED, STEPS)
    z = codes.mean[image].repeat(len(latents), STEPS, 1)
    for row, latent in enumerate(latents):
        z[row, :, latent] = values
    return figures.grid(
        _decode(model, z.flatten(0, 1)),
        STEPS,
        title=f"{title}: each row sets one latent to the value above the column".removeprefix(": "),
        rows=[f"z{latent}   {kl[latent]:.2f} nats" for latent in latents],
        heads=[f"{value:g}" for value in values.tolist()],
    )


def prior_quantiles(side: int, lowest: float = 0.05) -> Tensor:
    """Standard-normal quantiles, evenly spaced in probability from ``lowest`` to 1 - ``lowest``: [side]."""
    probabilities = torch.linspace(lowest, 1.0 - lowest, side, dtype=torch.float64)
    return (math.sqrt(2.0) * torch.erfinv(2.0 * probabilities - 1.0)).float()


def manifold(model: VAE, across: Tensor | None = None, down: Tensor | None = None, *, title: str = "") -> Picture:
    """Images decoded over the plane of a 2-D latent space, z0 to the right and z1 upwards (Kingma & Welling 2013, app.).

    The values of z0, ``across`` [columns], and of z1, ``down`` [rows], are by default quantiles of the prior.

    Raises:
        ValueError: the model does not have two latents.
    """
    num_latents = model.group_shapes[0][0]
    if num_latents != 2:
        raise ValueError(
            f"a latent plane needs 2 latents, but this model has {num_latents}; train with --latent-dim 2 or look at traversals"
        )
    across = prior_quantiles(PLANE_SIDE) if across is None else across
    down = prior_quantiles(PLANE_SIDE) if down is None else down
    upwards = down.flip(0)
    z = torch.stack([across.repeat(len(upwards)), upwards.repeat_interleave(len(across))], dim=1)
    return figures.grid(
        _decode(model, z),
        len(across),
        title=f"{title}: decoded plane, z0 to the right and z1 upwards".removeprefix(": "),
        rows=[f"{value:.2f}" for value in upwards.tolist()],
        heads=[f"{value:.2f}" for value in across.tolist()],
    )


def aggregate_posterior(codes: Codes, source: torch.Generator, *, title: str = "") -> Picture:
    """Plot samples from the aggregate posterior and the prior in the two latents with the highest KL.

    A model with one latent gets histograms.
    """
    drawn = codes.draw(SCATTERED, source)
    prior = torch.randn(drawn.shape, generator=source)
    panels = (("aggregate posterior q(z)", drawn, "#c0504d"), ("prior p(z)", prior, "#4472a8"))
    figure, axes = figures.subplots(1, 2, size=(8.0, 4.0), sharex=True, sharey=True)
    chosen = codes.order[:2]
    limit = max(3.5, float(drawn[:, chosen].abs().quantile(0.999)))
    for panel, (name, points, colour) in zip(axes, panels, strict=True):
        panel.set_title(name)
        panel.set_xlabel(f"z{chosen[0]}")
        panel.set_xlim(-limit, limit)
        if len(chosen) == 1:
            panel.hist(points[:, 0].numpy(), bins=60, range=(-limit, limit), density=True, color=colour)
            continue
        panel.scatter(
            points[:, chosen[0]].numpy(), points[:, chosen[1]].numpy(), s=2, alpha=0.4, color=colour, linewidths=0
        )
        panel.set_ylabel(f"z{chosen[1]}")
        panel.set_ylim(-limit, limit)
        panel.set_aspect("equal")
    return figures.render(figure, f"{title}: samples of latents".removeprefix(": "))


def _pictures(model: VAE, x: Tensor, seed: int, title: str) -> Iterator[tuple[str, Picture]]:
    codes = encode(model, x)
    source = noise.generator(torch.device("cpu"), noise.FIGURES, seed)
    yield "traversal", traversal(model, codes, title=title)
    yield "kl_per_latent", figures.kl_bars(codes.kl.mean(0).tolist(), of="latent", title=title)
    yield "aggregate_posterior", aggregate_posterior(codes, source, title=title)
    if model.group_shapes == [(2,)]:
        yield "manifold", manifold(model, title=title)


@torch.no_grad()
def draw(model: VAE, x: Tensor, seed: int, title: str = "") -> dict[str, Picture]:
    """Every picture of the latents by name, from held-out images [N, C, H, W], of which the first is traversed."""
    return dict(_pictures(model, x, seed, title))
