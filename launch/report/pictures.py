"""Pictures of several models on the same images: samples, reconstructions, what the top groups hold, traversals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import datasets
from datasets import to_float
from launch.console import figures
from launch.console.figures import Picture
from launch.machine import noise
from launch.report.data import ScoredRun
from launch.results.run import open_run
from metrics import edits
from metrics.model import VAE

SHOWN = 8  # images of a row
POOL = 48  # images that principal axes are estimated from
MOST_LEVELS = 8  # rows of "top k groups"
MOST_AXES = 8  # rows of a traversal
STEPS, REACH = 7, 2.0


def _top_channels(model: VAE, x: Tensor) -> list[Tensor]:
    """Reconstructions of a model with one group from its 1, 2, ... channels with the highest KL, the rest at 0."""
    group = model.groups_at_means(x)[0]
    order, rows = group.kl_per_channel().argsort(descending=True), []
    for kept in _levels(len(order)):
        z = torch.zeros_like(group.z)
        z[:, order[:kept]] = group.z[:, order[:kept]]
        rows.append(model.decode([z]).mean)
    return rows


def _levels(count: int) -> list[int]:
    """1 to ``count``, at most MOST_LEVELS of them, the last included."""
    return sorted({int(v) for v in torch.linspace(1, count, min(count, MOST_LEVELS)).round().tolist()})


def top_groups(model: VAE, x: Tensor) -> Picture:
    """First row the images; then reconstructions from the top 1, 2, ... groups, those below at their prior means."""
    if len(model.group_shapes) == 1:
        rows = _top_channels(model, x)
    else:
        zs = model.encode(x)
        rows = [edits.decode_top(model, zs, kept) for kept in _levels(len(zs))]
    return figures.grid(torch.cat([x, *rows]), columns=len(x))


def traversals(model: VAE, pool: Tensor) -> Picture:
    """The first image moved along one axis a row: each group's first principal axes, or the latents of highest KL."""
    if len(model.group_shapes) == 1:
        kl = model.groups_at_means(pool)[0].kl_per_channel()
        axes = [edits.latent_axis(model, 0, channel) for channel in kl.argsort(descending=True)[:MOST_AXES].tolist()]
    else:
        chosen = [level - 1 for level in _levels(len(model.group_shapes))]
        each = max(1, MOST_AXES // len(chosen))
        axes = [axis for group in chosen for axis in edits.principal_axes(model, pool, group, each)]
    values = torch.linspace(-REACH, REACH, STEPS).tolist()
    rows = [edits.traverse(model, pool[:1], axis, values)[:, 0] for axis in axes]
    return figures.grid(torch.cat(rows), columns=STEPS)


@torch.no_grad()
def draw(
    run: ScoredRun, data_root: Path | None, device: torch.device, *, insist: bool = False
) -> Mapping[str, Picture]:
    """Pictures by name; all runs on one data set show the same images.

    Raises:
        ValueError: the data or the weights are not there.
    """
    protocol = run.record["protocol"]
    saved = open_run(run.path, device=device, weights=run.record["weights"], data_root=data_root, other_data=insist)
    data, model = saved.data("all" if protocol["full_grid"] else protocol["split"]), saved.model
    pool = to_float(data.images(datasets.choose_rows(len(data), POOL)), data.spec, device)
    x = pool[:: max(1, len(pool) // SHOWN)][:SHOWN]
    source = noise.generator(device, noise.FIGURES, protocol["seed"])
    return {
        "reconstructions": figures.pairs(x, model.reconstruct(x)),
        "samples": figures.grid(model.sample(2 * SHOWN, 1.0, generator=source), columns=SHOWN),
        "top groups": top_groups(model, x),
        "traversals": traversals(model, pool),
    }
