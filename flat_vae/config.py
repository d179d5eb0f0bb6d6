"""Architecture of a flat VAE, as a frozen value for JSON records and the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from metrics.pixel_head import LikelihoodName

NetworkName = Literal["auto", "burgess", "mlp", "frey", "conv"]
Initialisation = Literal["auto", "he", "glorot", "torch"]

_MOST = 65_536  # latents, mixtures or channels


@dataclass(frozen=True, kw_only=True)
class FlatVAEConfig:
    """Architecture of a flat VAE. Channels, size and bits of the images come from the data's ``ImageSpec``."""

    latent_dim: int = 10
    """Latents D of the one group."""
    network: NetworkName = "auto"
    """burgess (64x64), mlp (any size), frey (even height and width), conv (any size); auto: burgess at 64x64, else conv."""
    likelihood: LikelihoodName = "auto"
    """auto: bernoulli for 1-bit images, else mixture (discretised logistics as in NVAE). logistic: one logistic per pixel
    and channel, so that colours must be encoded in the latents. bits/dim of all of these are comparable."""
    normal_std: float | None = None
    """Fixed std of likelihood normal, in pixels scaled to [-1, 1]; default: the decoder predicts one for each pixel."""
    num_mixtures: int = 5
    """Logistics in likelihood mixture."""
    conv_channels: int = 32
    """Channels of the first layer of network conv."""
    init: Initialisation = "auto"
    """he, glorot: uniform weights of He et al. (for ReLU) or of Glorot & Bengio, zero biases; torch: PyTorch's default.
    auto: glorot for network mlp, whose decoder uses tanh, else he."""

    def __post_init__(self) -> None:
        """Refuse values that describe no model."""
        for name in ("latent_dim", "num_mixtures", "conv_channels"):
            value = getattr(self, name)
            if not 1 <= value <= _MOST:
                raise ValueError(f"{name} is {value}; give {'1 or more' if value < 1 else f'at most {_MOST:,}'}")
        for name, kind in (("network", NetworkName), ("likelihood", LikelihoodName), ("init", Initialisation)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(get_args(kind))}")
        if self.normal_std is None:
            return
        if self.likelihood != "normal":
            raise ValueError(
                f"normal_std is {self.normal_std} with likelihood {self.likelihood}; choose likelihood normal"
            )
        if not (math.isfinite(self.normal_std) and self.normal_std > 0.0):
            raise ValueError(f"normal_std is {self.normal_std}; give a positive number, e.g. 0.5")
