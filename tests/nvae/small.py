"""Small models and images for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metrics.model import VAE
from nvae import NVAE, NVAEConfig


@dataclass(frozen=True)
class Images:
    channels: int = 3
    height: int = 16
    width: int = 16
    num_bits: int = 8


SMALL: dict[str, Any] = {
    "num_scales": 2,
    "groups_per_scale": (2, 1),
    "latent_channels": 3,
    "channels_enc": 8,
    "channels_dec": 8,
    "cells_per_group_enc": 1,
    "cells_per_group_dec": 1,
    "num_mixtures": 2,
}


def small(spec: Images | None = None, **changes: Any) -> NVAE:
    """A model with seeded weights, in training mode."""
    torch.manual_seed(3)
    return NVAE(NVAEConfig(**{**SMALL, **changes}), spec or Images())


def images(model: VAE, num: int = 4, seed: int = 5) -> Tensor:
    """Random images on the grid of the model's bits."""
    spec = model.spec
    top = 2**spec.num_bits - 1
    shape = (num, spec.channels, spec.height, spec.width)
    levels = torch.randint(0, top + 1, shape, generator=torch.Generator().manual_seed(seed))
    return levels.float() / top


def noise(model: VAE, num: int = 4, seed: int = 6) -> list[Tensor]:
    """Standard-normal noise for every group."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num, *shape, generator=generator) for shape in model.group_shapes]
