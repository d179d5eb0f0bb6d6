"""Edits of latents, for any model: reconstruct from the top groups, interpolate, traverse and swap. Images in, images out.

Several edits work in *coordinates*: the latents of a group relative to their prior given the groups above,
(z - mean_p) / std_p. An edit of one group changes the priors of all groups below it. Keeping the coordinates of those
groups carries their detail over to the new context; keeping the latents themselves would contradict it. Use a model in
evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.decisions import Decision, Fixed, PriorSample, check_temperature
from metrics.elbo import Group
from metrics.model import VAE
from metrics.normal import Normal

Below = Literal["coordinates", "latents", "prior"]


def check_group(model: VAE, group: int) -> None:
    """Refuse a group that the model does not have.

    Raises:
        ValueError: ``group`` is not the index of a group.
    """
    count = len(model.group_shapes)
    if not 0 <= group < count:
        raise ValueError(f"group {group} does not exist; the model has groups 0 (top) to {count - 1}")


def _coordinates(group: Group) -> Tensor:
    return (group.z - group.prior.mean) / group.prior.std


def _decode(model: VAE, decisions: Sequence[Decision], num: int) -> Tensor:
    return model.top_down(decisions, num=num).likelihood.mean


def residual_parameters(group: Group) -> Normal:
    """Posterior of a group in units of its prior: mean (mu_q - mu_p) / sigma_p, std sigma_q / sigma_p.

    Mean near 0 and std near 1 if the group holds nothing about the image.
    """
    prior, posterior = group.prior, group.posterior
    return Normal((posterior.mean - prior.mean) / prior.std, posterior.std / prior.std)


@torch.no_grad()
def coordinates(model: VAE, x: Tensor) -> list[Tensor]:
    """Coordinates of images: latents at the posterior means (after any flow) relative to their priors, top group first."""
    return [_coordinates(group) for group in model.groups_at_means(x)]


@torch.no_grad()
def decode_coordinates(model: VAE, codes: Sequence[Tensor]) -> Tensor:
    """Mean images [B, C, H, W] of coordinates as :func:`coordinates` returns them: one tensor for each group, top first."""
    return _decode(model, [PriorSample(noise=code) for code in codes], len(codes[0]))


@torch.no_grad()
def decode_top(
    model: VAE,
    zs: Sequence[Tensor],
    num_fixed: int,
    *,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images ``[B, C, H, W]`` from the top ``num_fixed`` groups of the latents ``zs``.

    Latents are as :meth:`metrics.model.VAE.encode` returns them. The groups below are at their prior means, or drawn
    from their priors at a ``temperature``: features common to several draws are determined by the fixed groups.

    Raises:
        ValueError: ``num_fixed`` is not a valid number of groups, or the temperature is not positive.
    """
    count = len(model.group_shapes)
    if not 1 <= num_fixed <= min(count, len(zs)):
        raise ValueError(f"num_fixed is {num_fixed}; give a number from 1 to {min(count, len(zs))} groups")
    if temperature is not None:
        check_temperature(temperature)
    rest = PriorSample(0.0 if temperature is None else temperature, generator=generator)
    return _decode(model, [*(Fixed(z) for z in zs[:num_fixed]), *[rest] * (count - num_fixed)], zs[0].shape[0])


def spherical(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Point between ``a`` and ``b`` [B, ...] on a great circle (Shoemake 1985), which keeps their norm."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = F.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)[:, None]
    straight = (1.0 - weight) * flat_a + weight * flat_b
    arc = torch.sin((1.0 - weight) * angle) * flat_a + torch.sin(weight * angle) * flat_b
    sine = torch.sin(angle)
    return torch.where(sine.abs() < 1e-4, straight, arc / sine.clamp_min(1e-4)).view_as(a)


@torch.no_grad()
def interpolate(
    model: VAE, x_from: Tensor, x_to: Tensor, num: int = 8, kind: Literal["spherical", "linear"] = "spherical"
) -> Tensor:
    """Images ``[num, B, C, H, W]`` between pairs of images, both ends included.

    Every group is interpolated in its coordinates, on a sphere or on a line; the ends are the reconstructions.

    Raises:
        ValueError: fewer than two images, or an unknown ``kind``.
    """
    if num < 2 or kind not in ("spherical", "linear"):
        raise ValueError(f"num is {num}, kind is {kind!r}; give at least 2 images, and spherical or linear")
    path = spherical if kind == "spherical" else torch.lerp
    ends = list(zip(coordinates(model, x_from), coordinates(model, x_to), strict=True))
    weights = [i / (num - 1) for i in range(num)]
    return torch.stack([decode_coordinates(model, [path(a, b, weight) for a, b in ends]) for weight in weights])


@dataclass(frozen=True)
class Axis:
    """A direction in the coordinates of one group.

    Args:
        group: index of the group, 0 is the top.
        direction: change of the coordinates per unit, of the group's shape.
        origin: point with value 0 on the axis, of the group's shape.
    """

    group: int
    direction: Tensor
    origin: Tensor

    def value(self, codes: Tensor) -> Tensor:
        """Positions of coordinates ``[B, ...]`` on the axis, ``[B]``."""
        flat = self.direction.flatten()
        return ((codes - self.origin).flatten(1) @ flat) / (flat @ flat)

    def move(self, codes: Tensor, value: float) -> Tensor:
        """Coordinates ``codes`` moved along the axis to ``value`` and unchanged in every other direction."""
        distance = (value - self.value(codes)).view(-1, *[1] * self.direction.dim())
        return codes + distance * self.direction


def latent_axis(model: VAE, group: int, *index: int) -> Axis:
    """Axis of one latent (``channel, row, column``), or of a channel's mean over all positions (``channel``).

    In a group without positions, ``[B, D]``, a latent is a channel.

    Raises:
        ValueError: the model has no such group or latent.
    """
    check_group(model, group)
    shape = model.group_shapes[group]
    if not 1 <= len(index) <= len(shape) or any(not 0 <= i < n for i, n in zip(index, shape, strict=False)):
        raise ValueError(f"latent {index} does not exist; the latents of group {group} have shape {tuple(shape)}")
    direction = next(model.parameters()).new_zeros(shape)
    direction[index] = 1.0
    return Axis(group, direction, torch.zeros_like(direction))


@torch.no_grad()
def principal_axes(model: VAE, x: Tensor, group: int, num: int = 1) -> list[Axis]:
    """Directions in which a group's coordinates vary most over images ``x``; one unit is one standard deviation.

    Raises:
        ValueError: the model has no such group, or the images are too few for ``num`` axes.
    """
    check_group(model, group)
    codes = coordinates(model, x)[group]
    if not 1 <= num < min(len(x), codes[0].numel() + 1):
        raise ValueError(f"{num} principal axes of {len(x)} images: give more images, or at most {len(x) - 1} axes")
    mean = codes.mean(0)
    _, scales, directions = torch.linalg.svd((codes - mean).flatten(1), full_matrices=False)
    scales = scales / (len(x) - 1) ** 0.5
    return [Axis(group, (scales[i] * directions[i]).view_as(mean), mean) for i in range(num)]


@torch.no_grad()
def traverse(
    model: VAE, x: Tensor, axis: Axis, values: Sequence[float] = (-2, -1, 0, 1, 2), below: Below = "coordinates"
) -> Tensor:
    """Reconstructions ``[len(values), B, C, H, W]`` of images that are moved along an axis of one group.

    Args:
        model: a model in evaluation mode.
        x: images ``[B, C, H, W]``.
        axis: an axis of :func:`latent_axis` or :func:`principal_axes`.
        values: positions on the axis; for a latent or a channel in standard deviations of the prior.
        below: treatment of the groups below the moved one: keep their "coordinates", keep their "latents", or take
            their prior means ("prior").

    Raises:
        ValueError: ``below`` is none of these.
    """
    groups = model.groups_at_means(x)
    above: list[Decision] = [Fixed(group.z) for group in groups[: axis.group]]
    lower = [_keep(group, below) for group in groups[axis.group + 1 :]]
    codes = _coordinates(groups[axis.group])
    moved = [PriorSample(noise=axis.move(codes, float(value))) for value in values]
    return torch.stack([_decode(model, [*above, decision, *lower], x.shape[0]) for decision in moved])


def _keep(group: Group, below: Below) -> Decision:
    if below == "coordinates":
        return PriorSample(noise=_coordinates(group))
    if below == "latents":
        return Fixed(group.z)
    if below == "prior":
        return PriorSample(0.0)
    raise ValueError(f"below is {below!r}; choose coordinates, latents or prior")


@torch.no_grad()
def swap(
    model: VAE,
    x_a: Tensor,
    x_b: Tensor,
    groups: Sequence[int],
    below: Literal["coordinates", "latents"] = "coordinates",
) -> tuple[Tensor, Tensor]:
    """Reconstructions of ``x_a`` with the given groups of ``x_b``, and of ``x_b`` with those of ``x_a``.

    A swap of all groups exchanges the images. With ``below``, every group keeps its coordinates or its latents.

    Raises:
        ValueError: the model has no such group.
    """
    for group in groups:
        check_group(model, group)
    kept = [[_keep(group, below) for group in model.groups_at_means(x)] for x in (x_a, x_b)]
    exchanged = [[kept[side ^ (i in groups)][i] for i in range(len(kept[0]))] for side in (0, 1)]
    return _decode(model, exchanged[0], x_a.shape[0]), _decode(model, exchanged[1], x_b.shape[0])
