"""Noise as a function of (seed, step): no generator state is saved, and the noise is the same for any number of ranks.

Every rank draws the noise of the whole global batch, group by group, and keeps its slice. Therefore a step on two processes
equals the step on one up to rounding, and a resumed run continues exactly, even on another number of processes. All CPUs
draw the same numbers. A GPU draws other numbers; for large tensors they depend on its number of multiprocessors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

TRAIN, EVALUATE, FIGURES, IMPORTANCE = "train", "evaluate", "figures", "importance"


def generator(device: torch.device, *key: int | str) -> torch.Generator:
    """A generator seeded by a hash of ``key``, e.g. (purpose, seed, step)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))


def standard_normal(
    shapes: Sequence[tuple[int, ...]],
    source: torch.Generator,
    *,
    local: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
) -> list[Tensor]:
    """One tensor [local, *shape] for each shape: this rank's part of the draw for ``local * world_size`` images.

    The draw follows the order of the images (:class:`datasets.Batches`): ``accumulation`` parts, each of which is a slice for
    every rank.
    """
    size = local // accumulation

    def own(shape: tuple[int, ...]) -> Tensor:
        drawn = torch.randn(local * world_size, *shape, device=source.device, generator=source)
        return drawn.view(accumulation, world_size, size, *shape)[:, rank].reshape(local, *shape).clone()

    return [own(shape) for shape in shapes]
