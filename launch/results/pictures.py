"""Pictures of a trained model: samples, reconstructions, top groups, traversals, interpolations and swaps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import datasets
from datasets import to_float
from launch.console import figures
from launch.console.figures import Picture
from launch.machine import files, noise
from launch.results.run import RunFlags, SavedRun
from metrics import edits
from metrics.model import VAE

SHOWN = 8  # images of a row
POOL = 48  # images that principal axes are estimated from
MOST_LEVELS = 8  # rows of "top k groups"
MOST_AXES = 8  # rows of a traversal
STEPS, REACH = 7, 2.0
MILLISECONDS = 120  # of a frame of a GIF
Show = Literal["traverse", "interpolate", "swap", "top"]


def _top_channels(model: VAE, x: Tensor) -> list[Tensor]:
    """Reconstruct images from the 1, 2, ... channels of highest KL of a model with one group; the rest is 0."""
    group = model.groups_at_means(x)[0]
    order, rows = group.kl_per_channel().argsort(descending=True), []
    for kept in _levels(len(order)):
        z = torch.zeros_like(group.z)
        z[:, order[:kept]] = group.z[:, order[:kept]]
        rows.append(model.decode([z]).mean)
    return rows


def _levels(count: int) -> list[int]:
    """Choose at most MOST_LEVELS numbers from 1 to ``count``, the last included."""
    return sorted({int(v) for v in torch.linspace(1, count, min(count, MOST_LEVELS)).round().tolist()})


def _numbers(values: Sequence[float]) -> list[str]:
    """Format the positions of a traversal; the middle one is 0.0 and not -0.0."""
    return [f"{round(value, 1) + 0.0:.1f}" for value in values]


def top_groups(model: VAE, x: Tensor, title: str) -> Picture:
    """Draw the images, and below them reconstructions from the top 1, 2, ... groups; the rest is at its prior mean."""
    if len(model.group_shapes) == 1:
        rows, of = _top_channels(model, x), "latents"
        levels = _levels(model.group_shapes[0][0])
    else:
        zs = model.encode(x)
        levels, of = _levels(len(zs)), "groups"
        rows = [edits.decode_top(model, zs, kept) for kept in levels]
    names = ["original", *(f"top {kept} {of}" for kept in levels)]
    return figures.grid(torch.cat([x, *rows]), len(x), title=f"{title}: decoded from the top {of}", rows=names)


class NamedAxis(NamedTuple):
    """An axis of a group's coordinates and its name."""

    name: str
    axis: edits.Axis


@torch.no_grad()
def leading_axes(model: VAE, x: Tensor, groups: Iterable[int], each: int, latents: int) -> list[NamedAxis]:
    """Choose the axes along which images [N, C, H, W] vary most.

    These are the first ``each`` principal axes of ``groups``, or the ``latents`` with the highest mean KL of a model with
    one group.
    """
    if len(model.group_shapes) == 1:
        kl = model.groups_at_means(x)[0].kl_per_channel()
        chosen = kl.argsort(descending=True)[:latents].tolist()
        return [NamedAxis(f"z{i} ({float(kl[i]):.2f} nats)", edits.latent_axis(model, 0, i)) for i in chosen]
    return [
        NamedAxis(f"group {group}, axis {i}", axis)
        for group in groups
        for i, axis in enumerate(edits.principal_axes(model, x, group, each))
    ]


def traversals(model: VAE, pool: Tensor, title: str) -> Picture:
    """Move the first image along one of the leading axes per row."""
    groups = [level - 1 for level in _levels(len(model.group_shapes))]
    named = leading_axes(model, pool, groups, max(1, MOST_AXES // len(groups)), MOST_AXES)
    values = torch.linspace(-REACH, REACH, STEPS).tolist()
    rows = [edits.traverse(model, pool[:1], axis, values)[:, 0] for _, axis in named]
    return figures.grid(
        torch.cat(rows),
        STEPS,
        title=f"{title}: each row moves a held-out image along one axis, by the standard deviations above",
        rows=[name for name, _ in named],
        heads=_numbers(values),
    )


@torch.no_grad()
def overview(run: SavedRun, split: str, seed: int) -> Mapping[str, Picture]:
    """Draw pictures of a model by name; all runs on one data set show the same images.

    Args:
        run: a trained run.
        split: split of the images.
        seed: seed of the samples.

    Raises:
        ValueError: the data or the weights are missing.
    """
    data, model = run.data(split), run.model
    pool = to_float(data.images(datasets.choose_rows(len(data), POOL)), data.spec, run.device)
    x = pool[:: max(1, len(pool) // SHOWN)][:SHOWN]
    source = noise.generator(run.device, noise.FIGURES, seed)
    drawn, title = model.sample(2 * SHOWN, 1.0, generator=source), run.title
    return {
        "reconstructions": figures.pairs(x, model.reconstruct(x), title=f"{title}: held-out images"),
        "samples": figures.grid(drawn, SHOWN, title=f"{title}: samples at temperature 1"),
        "top groups": top_groups(model, x, title),
        "traversals": traversals(model, pool, title),
    }


# --- What traverse.py shows -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TraverseConfig(RunFlags):
    """Settings of the pictures."""

    show: Show = "traverse"
    """traverse: move along latents. interpolate: from --image to --other. swap: exchange groups of the two.
    top: reconstruct from the top 1, 2, ... groups, with the others sampled from their priors."""
    by: Literal["channel", "latent", "axis"] = "channel"
    """Unit that a row of traverse moves: a channel's mean, one latent, or a principal axis over --images images."""
    group: int = 0
    """Group to traverse or to swap; 0 is the top group."""
    rows: int = 8
    """Number of rows of traverse: the channels or latents with the highest KL, or the first axes."""
    range: tuple[float, float] = (-2.0, 2.0)
    """Ends of a traversal, in standard deviations of the prior (for an axis: of the images)."""
    steps: int = 9
    """Images of a traversal or an interpolation."""
    below: edits.Below = "coordinates"
    """Groups below a moved one keep their position relative to their priors, keep their values, or follow their
    priors."""
    image: int = 0
    """Index of the image in the split."""
    other: int = 1
    """Index of the second image, for interpolate and swap."""
    images: int = 64
    """Number of images for the mean KL and the principal axes."""
    temperature: float = 0.7
    """Temperature of the groups that top samples."""
    split: str = "test"
    """train, valid or test."""
    out: Path | None = None
    """Folder; default <run>/figures."""
    seed: int = 0
    """Seed of the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.steps < 2 or self.images < 2:
            raise ValueError(
                f"--rows {self.rows} --steps {self.steps} --images {self.images}; give at least 1 row, 2 steps, 2 images"
            )
        low, high = self.range
        if not -np.inf < low < high < np.inf:
            raise ValueError(f"--range {low:g} {high:g}; give two numbers, the lower one first")


def kl_map(model: VAE, x: Tensor, group: int, seed: int = 0) -> Tensor:
    """Compute the KL of each latent of a group in nats, averaged over images, with one sample of the latents for each."""
    features = model.bottom_up(x)
    source = noise.generator(x.device, noise.FIGURES, seed)
    drawn = noise.standard_normal(model.group_shapes, source, local=len(x))
    return model.descend(model.posterior_samples(drawn), features)[group].kl().mean(0)


def axes_of(model: VAE, x: Tensor, config: TraverseConfig) -> list[NamedAxis]:
    """Choose the rows of a traversal: names and axes, those with the highest KL (or variance) first."""
    group = config.group
    shape = model.group_shapes[group]
    if config.by == "axis":
        count = min(config.rows, len(x) - 1, math.prod(shape))
        return [NamedAxis(f"axis {i}", axis) for i, axis in enumerate(edits.principal_axes(model, x, group, count))]
    kl = kl_map(model, x, group, config.seed)
    scores = kl.reshape(len(kl), -1).sum(1) if config.by == "channel" else kl.flatten()
    rows: list[NamedAxis] = []
    for index in scores.argsort(descending=True)[: config.rows].tolist():
        place = (index,) if config.by == "channel" else [int(i) for i in np.unravel_index(index, shape)]
        name = f"{config.by} {','.join(map(str, place))} ({float(scores[index]):.2f} nats)"
        rows.append(NamedAxis(name, edits.latent_axis(model, group, *place)))
    return rows


@dataclass(frozen=True)
class Shown:
    """Images in rows and columns, [rows, columns, C, H, W] in [0, 1], with their captions."""

    images: Tensor
    says: str
    rows: Sequence[str]
    heads: Sequence[str] = ()

    def picture(self, title: str) -> Picture:
        """Arrange the images with their labels; ``title`` names the model."""
        images, columns = self.images.flatten(0, 1), self.images.shape[1]
        return figures.grid(images, columns, title=f"{title}: {self.says}", rows=self.rows, heads=self.heads)

    def frames(self, title: str) -> list[Picture]:
        """Arrange each column as a frame of its own, for a GIF."""
        return [
            figures.grid(column, 1, title=f"{title}: {self.says}", rows=self.rows, heads=[head])
            for column, head in zip(self.images.transpose(0, 1), self.heads, strict=True)
        ]


def _traverse(model: VAE, x: Tensor, chosen: Tensor, config: TraverseConfig) -> Shown:
    values, named = torch.linspace(*config.range, config.steps).tolist(), axes_of(model, x, config)
    for row, (name, _) in enumerate(named):
        print(f"row {row}: {name}")
    rows = [edits.traverse(model, chosen, axis, values, config.below)[:, 0] for _, axis in named]
    of = "the images" if config.by == "axis" else "the prior"
    says = (
        f"{config.split} image {config.image}; each row moves one {config.by} of group {config.group}, by the standard "
        f"deviations of {of} above"
    )
    return Shown(torch.stack(rows), says, [name for name, _ in named], _numbers(values))


def _interpolate(model: VAE, pair: Tensor, config: TraverseConfig) -> Shown:
    images = edits.interpolate(model, pair[:1], pair[1:], config.steps).transpose(0, 1)
    says = f"from {config.split} image {config.image} (0) to image {config.other} (1), all groups"
    heads = [f"{i / (config.steps - 1):.2f}" for i in range(config.steps)]
    return Shown(images, says, ["interpolation"], heads)


def _swap(model: VAE, pair: Tensor, config: TraverseConfig) -> Shown:
    """Decode three rows: the two images, their reconstructions, and both with the group exchanged."""
    plain = torch.cat(edits.swap(model, pair[:1], pair[1:], []))
    swapped = torch.cat(edits.swap(model, pair[:1], pair[1:], [config.group]))
    rows = ["original", "reconstruction", f"group {config.group} swapped"]
    heads = [f"image {index}" for index in (config.image, config.other)]
    return Shown(torch.stack([pair, plain, swapped]), f"two {config.split} images exchange a group", rows, heads)


def _top(model: VAE, x: Tensor, config: TraverseConfig, source: torch.Generator) -> Shown:
    """Decode a row each for the top 1, 2, ... groups of an image, with prior means and then samples of the others."""
    zs = [z.expand(config.steps - 1, *z.shape[1:]) for z in model.encode(x)]
    rows = []
    for kept in range(1, len(zs) + 1):
        mean = edits.decode_top(model, [z[:1] for z in zs], kept)
        drawn = edits.decode_top(model, zs, kept, temperature=config.temperature, generator=source)
        rows.append(torch.cat([mean, drawn]))
    says = f"{config.split} image {config.image} from its top groups, the others sampled at temperature {config.temperature:g}"
    names = [f"top {kept} of {len(zs)} groups" for kept in range(1, len(zs) + 1)]
    heads = ["prior mean", *(f"sample {i}" for i in range(1, config.steps))]
    return Shown(torch.stack(rows), says, names, heads)


@torch.no_grad()
def show(model: VAE, x: Tensor, pair: Tensor, config: TraverseConfig) -> Shown:
    """Decode the requested images, with their labels.

    Args:
        model: in evaluation mode.
        x: images [N, C, H, W] for the mean KL and the principal axes.
        pair: the image and its partner for interpolate and swap, [2, C, H, W].
        config: what to show.

    Raises:
        ValueError: the group does not exist, the temperature is invalid, or the picture needs several groups and the
            model has one.
    """
    edits.check_group(model, config.group)
    if config.show == "traverse":
        return _traverse(model, x, pair[:1], config)
    if config.show == "interpolate":
        return _interpolate(model, pair, config)
    if len(model.group_shapes) < 2:
        raise ValueError(
            f"--show {config.show} needs several groups, but this model has one; use traverse or interpolate"
        )
    if config.show == "swap":
        return _swap(model, pair, config)
    return _top(model, pair[:1], config, noise.generator(pair.device, noise.FIGURES, config.seed))


def save_gif(frames: list[Picture], path: Path) -> Path:
    """Write a GIF that runs forward and backward in a loop."""
    pictures = [Image.fromarray(frame) for frame in (*frames, *frames[-2:0:-1])]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(
        path,
        lambda file: pictures[0].save(
            file, format="gif", save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0
        ),
    )
    return path


def name_of(config: TraverseConfig) -> str:
    """Name the file of the requested pictures."""
    names = {
        "traverse": f"traverse_g{config.group}_{config.by}_i{config.image}",
        "interpolate": f"interpolate_i{config.image}-{config.other}",
        "swap": f"swap_g{config.group}_i{config.image}-{config.other}",
        "top": f"top_t{config.temperature:g}_i{config.image}_seed{config.seed}",
    }
    return names[config.show]
