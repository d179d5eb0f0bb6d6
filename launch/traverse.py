"""Look into a model's latents: traverse, interpolate, swap groups, reconstruct from the top groups; PNG grids and GIFs.

Examples:
  python launch/traverse.py --run runs/celeba-nvae-tiny-seed0 --group 1 --by axis
  python launch/traverse.py --run runs/celeba-nvae-tiny-seed0 --show interpolate --image 3 --other 8
  python launch/traverse.py --run runs/celeba-nvae-tiny-seed0 --show swap --group 0 --image 3 --other 8
  python launch/traverse.py --run runs/celeba-nvae-tiny-seed0 --show top --temperature 0.7

Flat VAEs have one group, number 0. Pictures go into <run>/figures.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import datasets
from launch.console import errors, figures
from launch.console.figures import Picture
from launch.console.flags import parse
from launch.machine import distributed, files, noise
from launch.results.run import open_run
from metrics import edits
from metrics.model import VAE

MILLISECONDS = 120  # of a frame of a GIF
Show = Literal["traverse", "interpolate", "swap", "top"]


@dataclass(frozen=True, kw_only=True)
class TraverseConfig:
    """What to show."""

    run: Path
    """Run folder."""
    show: Show = "traverse"
    """traverse: move along latents. interpolate: from --image to --other. swap: exchange groups of the two.
    top: reconstruct from the top 1, 2, ... groups, the rest drawn from their priors."""
    by: Literal["channel", "latent", "axis"] = "channel"
    """What a row of traverse moves: a channel's mean, one latent, or a principal axis over --images images."""
    group: int = 0
    """Group to traverse or to swap, 0 is the top one."""
    rows: int = 8
    """Rows of traverse: the channels or latents with the highest KL, or the first axes."""
    range: tuple[float, float] = (-2.0, 2.0)
    """Ends of a traversal, in standard deviations of the prior (of an axis: of the images)."""
    steps: int = 9
    """Images of a traversal or an interpolation."""
    below: edits.Below = "coordinates"
    """What the groups under a moved one keep: their place relative to their priors, their values, or nothing."""
    image: int = 0
    """Index of the image in the split."""
    other: int = 1
    """The second image, of interpolate and swap."""
    images: int = 64
    """Images that the KL is averaged over and axes are found in."""
    temperature: float = 0.7
    """Of the groups that top draws."""
    split: str = "test"
    """train, valid or test."""
    data_root: Path | None = None
    """Where the data is now, if it moved since training."""
    other_data: bool = False
    """Use the data even if they differ from those that the run was trained on."""
    out: Path | None = None
    """Folder; default <run>/figures."""
    weights: Literal["auto", "raw"] = "auto"
    """auto: the averaged weights if the run has them."""
    seed: int = 0
    """Of draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.steps < 2 or self.images < 2:
            raise ValueError(
                f"--rows {self.rows} --steps {self.steps} --images {self.images}; give at least 1 row, 2 steps, 2 images"
            )
        low, high = self.range
        if not -np.inf < low < high < np.inf:
            raise ValueError(f"--range {low:g} {high:g}; give two numbers, the lower one first")


def kl_map(model: VAE, x: Tensor, group: int, seed: int = 0) -> Tensor:
    """KL of each latent of a group in nats, mean over images, [C, H, W]; one draw of the latents for each image."""
    features = model.bottom_up(x)
    source = noise.generator(x.device, noise.FIGURES, seed)
    drawn = noise.standard_normal(model.group_shapes, source, local=len(x))
    return model.descend(model.posterior_samples(drawn), features)[group].kl().mean(0)


def axes_of(model: VAE, x: Tensor, config: TraverseConfig) -> list[tuple[str, edits.Axis]]:
    """Names and axes of the rows, those with the highest KL (or variance) first."""
    group = config.group
    shape = model.group_shapes[group]
    if config.by == "axis":
        count = min(config.rows, len(x) - 1, math.prod(shape))
        found = edits.principal_axes(model, x, group, count)
        return [(f"axis {i}", axis) for i, axis in enumerate(found)]
    kl = kl_map(model, x, group, config.seed)
    scores = kl.reshape(len(kl), -1).sum(1) if config.by == "channel" else kl.flatten()
    rows: list[tuple[str, edits.Axis]] = []
    for index in scores.argsort(descending=True)[: config.rows].tolist():
        place = (index,) if config.by == "channel" else [int(i) for i in np.unravel_index(index, shape)]
        name = f"{config.by} {','.join(map(str, place))} ({float(scores[index]):.2f} nats)"
        rows.append((name, edits.latent_axis(model, group, *place)))
    return rows


def _traverse(model: VAE, x: Tensor, chosen: Tensor, config: TraverseConfig) -> Tensor:
    values = torch.linspace(*config.range, config.steps).tolist()
    rows: list[Tensor] = []
    for name, axis in axes_of(model, x, config):
        print(f"row {len(rows)}: {name}")
        rows.append(edits.traverse(model, chosen, axis, values, config.below)[:, 0])
    return torch.stack(rows)


def _swap(model: VAE, pair: Tensor, group: int) -> Tensor:
    """Rows: the two images, their reconstructions, those with the group exchanged."""
    plain = torch.cat(edits.swap(model, pair[:1], pair[1:], []))
    return torch.stack([pair, plain, torch.cat(edits.swap(model, pair[:1], pair[1:], [group]))])


def _top(model: VAE, x: Tensor, config: TraverseConfig, source: torch.Generator) -> Tensor:
    """Rows: draws with the top 1, 2, ... groups of the image kept; in the first column the rest at their prior means."""
    zs = [z.expand(config.steps - 1, *z.shape[1:]) for z in model.encode(x)]
    rows = []
    for kept in range(1, len(zs) + 1):
        mean = edits.decode_top(model, [z[:1] for z in zs], kept)
        drawn = edits.decode_top(model, zs, kept, temperature=config.temperature, generator=source)
        rows.append(torch.cat([mean, drawn]))
    return torch.stack(rows)


@torch.no_grad()
def show(model: VAE, x: Tensor, pair: Tensor, config: TraverseConfig) -> Tensor:
    """Images [rows, columns, C, H, W] in [0, 1].

    Args:
        model: in evaluation mode.
        x: images [N, C, H, W] that KL and axes are from.
        pair: the image, and the one that it goes to or swaps with, [2, C, H, W].
        config: what to show.

    Raises:
        ValueError: a group or a temperature that the model does not take; groups asked of a model with one.
    """
    edits.check_group(model, config.group)
    if config.show == "traverse":
        return _traverse(model, x, pair[:1], config)
    if config.show == "interpolate":
        return edits.interpolate(model, pair[:1], pair[1:], config.steps).transpose(0, 1)
    if len(model.group_shapes) < 2:
        raise ValueError(f"--show {config.show} needs several groups, this model has one; use traverse or interpolate")
    if config.show == "swap":
        return _swap(model, pair, config.group)
    return _top(model, pair[:1], config, noise.generator(pair.device, noise.FIGURES, config.seed))


def save_gif(frames: list[Picture], path: Path) -> Path:
    """Write a GIF that runs forth and back for ever, whole or not at all."""
    pictures = [Image.fromarray(frame) for frame in (*frames, *frames[-2:0:-1])]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(
        path,
        lambda file: pictures[0].save(
            file, format="gif", save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0
        ),
    )
    return path


def _name(config: TraverseConfig) -> str:
    names: dict[str, Any] = {
        "traverse": f"traverse_g{config.group}_{config.by}_i{config.image}",
        "interpolate": f"interpolate_i{config.image}-{config.other}",
        "swap": f"swap_g{config.group}_i{config.image}-{config.other}",
        "top": f"top_t{config.temperature:g}_i{config.image}_seed{config.seed}",
    }
    return str(names[config.show])


def main(arguments: list[str]) -> None:
    """Parse, decode, save, and say where."""
    config = parse(TraverseConfig, None, arguments, prog="traverse.py", description=__doc__ or "")
    ranks = distributed.start(config.device)
    run = open_run(
        config.run,
        device=ranks.device,
        weights=config.weights,
        data_root=config.data_root,
        other_data=config.other_data,
    )
    edits.check_group(run.model, config.group)
    data = run.data(config.split)
    for index in (config.image, config.other):
        if not 0 <= index < len(data):
            raise ValueError(f"there is no image {index}; the {config.split} split has images 0 to {len(data) - 1}")
    several, pair = np.arange(min(config.images, len(data))), np.array([config.image, config.other])
    x, chosen = (datasets.to_float(data.images(i), data.spec, ranks.device) for i in (several, pair))
    rows = show(run.model, x, chosen, config).cpu()
    if not torch.isfinite(rows).all():
        raise FloatingPointError(
            f"the images that {config.run} decodes are not finite, so its weights are broken; use an earlier checkpoint"
        )
    folder, name = config.out or run.files.figures, _name(config)
    saved = [figures.save(figures.grid(rows.flatten(0, 1), columns=rows.shape[1]), folder / f"{name}.png")]
    if config.show in ("traverse", "interpolate"):
        frames = [figures.grid(column) for column in rows.transpose(0, 1)]
        saved.append(save_gif(frames, folder / f"{name}.gif"))
    print(f"{config.show} of {config.run} (step {run.step:,}): {', '.join(map(str, saved))}")


if __name__ == "__main__":
    errors.main(main)
