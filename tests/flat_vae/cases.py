"""Small specs and images that the flat family's tests share."""

from __future__ import annotations

import torch
from torch import Tensor

from datasets import ImageSpec

BINARY = ImageSpec(channels=1, height=8, width=8, num_bits=1)
COLOUR = ImageSpec(channels=3, height=9, width=6, num_bits=5)


def levels(spec: ImageSpec, num: int, seed: int = 0) -> Tensor:
    """Random images on the grid of ``spec``, [num, C, H, W] in [0, 1]."""
    top = 2**spec.num_bits - 1
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, top + 1, (num, spec.channels, spec.height, spec.width), generator=source) / top
