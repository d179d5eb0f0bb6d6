"""Tools for the latents of an NVAE: fix, interpolate, traverse and swap groups. Images in, images out.

Several work in *coordinates*: a group's latents relative to their prior given the groups above, (z - mean_p) / std_p.
An edited group moves the priors of all groups below it; keeping the coordinates of those carries the detail over to
the new context, where keeping the latents themselves would contradict it. Use a model in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.elbo import Group
from metrics.normal import Normal
from nvae.model import NVAE
from nvae.posterior import Decision, Fixed, PosteriorMean, PriorSample, check_temperature

Below = Literal["coordinates", "latents", "prior"]


def check_group(model: NVAE, group: int) -> None:
    """Refuse a group that the model does not have."""
    count = len(model.group_shapes)
    if not 0 <= group < count:
        raise ValueError(f"group {group} does not exist; the model has groups 0 (top) to {count - 1}")


def _groups_at_means(model: NVAE, x: Tensor) -> list[Group]:
    decisions = [PosteriorMean() for _ in model.group_shapes]
    return list(model.top_down(decisions, model.bottom_up(x)).groups)


def _coordinates(group: Group) -> Tensor:
    return (group.z - group.prior.mean) / group.prior.std


def _decode(model: NVAE, decisions: Sequence[Decision], num: int) -> Tensor:
    return model.top_down(decisions, num=num).likelihood.mean


@torch.no_grad()
def residual_parameters(model: NVAE, x: Tensor) -> list[Normal]:
    """Each group's posterior in units of its prior: mean (mu_q - mu_p) / sigma_p, std sigma_q / sigma_p; top first.

    Near zero mean and unit std where a group says nothing about the image. Groups above are at their means.
    """
    groups = _groups_at_means(model, x)
    return [Normal((g.posterior.mean - g.prior.mean) / g.prior.std, g.posterior.std / g.prior.std) for g in groups]


@torch.no_grad()
def coordinates(model: NVAE, x: Tensor) -> list[Tensor]:
    """Latents at the posterior means (moved by flows where there are any) relative to their priors, top group first."""
    return [_coordinates(group) for group in _groups_at_means(model, x)]


@torch.no_grad()
def decode_top(
    model: NVAE,
    zs: Sequence[Tensor],
    num_fixed: int,
    *,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images ``[B, C, H, W]`` from the top ``num_fixed`` groups of ``zs``, as :meth:`NVAE.encode` gives them.

    The groups below are at their prior means, or drawn from their priors at a ``temperature``. What stays the same
    over several draws is what the fixed groups hold.
    """
    count = len(model.group_shapes)
    if not 1 <= num_fixed <= min(count, len(zs)):
        raise ValueError(f"num_fixed is {num_fixed}; give a number from 1 to {min(count, len(zs))} groups")
    if temperature is not None:
        check_temperature(temperature)
    rest = PriorSample(0.0 if temperature is None else temperature, generator=generator)
    return _decode(model, [*(Fixed(z) for z in zs[:num_fixed]), *[rest] * (count - num_fixed)], zs[0].shape[0])


def spherical(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Between ``a`` and ``b`` [B, ...] along a great circle (Shoemake 1985), so that their norm is kept."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = F.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)[:, None]
    straight = (1.0 - weight) * flat_a + weight * flat_b
    arc = torch.sin((1.0 - weight) * angle) * flat_a + torch.sin(weight * angle) * flat_b
    sine = torch.sin(angle)
    return torch.where(sine.abs() < 1e-4, straight, arc / sine.clamp_min(1e-4)).view_as(a)


@torch.no_grad()
def interpolate(
    model: NVAE, x_from: Tensor, x_to: Tensor, num: int = 8, kind: Literal["spherical", "linear"] = "spherical"
) -> Tensor:
    """Images ``[num, B, C, H, W]`` on the way between pairs of images, both ends included.

    Every group is interpolated in its coordinates, ``spherical`` or ``linear``; the ends are the reconstructions.
    """
    if num < 2 or kind not in ("spherical", "linear"):
        raise ValueError(f"num is {num}, kind is {kind!r}; give at least 2 images, and spherical or linear")
    path = spherical if kind == "spherical" else torch.lerp
    ends = list(zip(coordinates(model, x_from), coordinates(model, x_to), strict=True))
    weights = [i / (num - 1) for i in range(num)]
    return torch.stack(
        [
            _decode(model, [PriorSample(noise=path(a, b, weight)) for a, b in ends], x_from.shape[0])
            for weight in weights
        ]
    )


@dataclass(frozen=True)
class Axis:
    """A direction in the coordinates of one group.

    Args:
        group: index, 0 is the top.
        direction: what one unit adds to the coordinates, ``[C, H, W]``.
        origin: the point with value 0 on the axis, ``[C, H, W]``.
    """

    group: int
    direction: Tensor
    origin: Tensor

    def value(self, codes: Tensor) -> Tensor:
        """Where coordinates ``[B, C, H, W]`` lie on the axis, ``[B]``."""
        flat = self.direction.flatten()
        return ((codes - self.origin).flatten(1) @ flat) / (flat @ flat)

    def move(self, codes: Tensor, value: float) -> Tensor:
        """``codes`` moved along the axis to ``value``; all else about them stays."""
        return codes + (value - self.value(codes))[:, None, None, None] * self.direction


def _axis(model: NVAE, group: int, index: tuple[int, ...]) -> Axis:
    check_group(model, group)
    shape = model.group_shapes[group]
    if any(not 0 <= i < size for i, size in zip(index, shape, strict=False)):
        raise ValueError(f"latent {index} does not exist; the latents of group {group} have shape {shape}")
    direction = model.output_conv.weight.new_zeros(shape)
    direction[index] = 1.0
    return Axis(group, direction, torch.zeros_like(direction))


def element_axis(model: NVAE, group: int, channel: int, row: int, column: int) -> Axis:
    """One latent number."""
    return _axis(model, group, (channel, row, column))


def channel_axis(model: NVAE, group: int, channel: int) -> Axis:
    """A channel's average over all positions."""
    return _axis(model, group, (channel,))


@torch.no_grad()
def principal_axes(model: NVAE, x: Tensor, group: int, num: int = 1) -> list[Axis]:
    """The directions in which a group's coordinates vary most over images ``x``; one unit is one standard deviation."""
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
    model: NVAE, x: Tensor, axis: Axis, values: Sequence[float] = (-2, -1, 0, 1, 2), below: Below = "coordinates"
) -> Tensor:
    """Reconstructions ``[len(values), B, C, H, W]`` of images moved along an axis of one group.

    Args:
        model: in evaluation mode.
        x: ``[B, C, H, W]``.
        axis: of :func:`element_axis`, :func:`channel_axis` or :func:`principal_axes`.
        values: positions on the axis, in prior standard deviations for an element or a channel.
        below: what the groups under the moved one keep: "coordinates", "latents", or nothing ("prior" means).
    """
    groups = _groups_at_means(model, x)
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
    model: NVAE,
    x_a: Tensor,
    x_b: Tensor,
    groups: Sequence[int],
    below: Literal["coordinates", "latents"] = "coordinates",
) -> tuple[Tensor, Tensor]:
    """Reconstructions of ``x_a`` with these groups of ``x_b``, and of ``x_b`` with those of ``x_a``.

    Swapping all groups exchanges the images; ``below`` says what every group carries over.
    """
    for group in groups:
        check_group(model, group)
    kept = [[_keep(group, below) for group in _groups_at_means(model, x)] for x in (x_a, x_b)]
    exchanged = [[kept[side ^ (i in groups)][i] for i in range(len(kept[0]))] for side in (0, 1)]
    return _decode(model, exchanged[0], x_a.shape[0]), _decode(model, exchanged[1], x_b.shape[0])
