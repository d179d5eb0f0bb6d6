"""Names for the numbers of an evaluation: which of them a model has, and in which unit they are printed."""

from __future__ import annotations

import math
from dataclasses import dataclass

OF_THE_RATE = ("rate", "elbo", "negative_elbo", "active_units", "importance_bound")


@dataclass(frozen=True)
class Measure:
    """The kind of numbers that an evaluation gives.

    The records of a run hold every number under one set of names. This decides which of them are shown, and how.

    Args:
        is_density: the likelihood is a density of continuous pixels. Its nats may have either sign and depend on the scale of
            the pixels, so they are not bits/dim that can be compared with those of another likelihood.
        has_rate: the posterior is trained as a distribution. An autoencoder trains its mean alone, so it has a distortion
            but neither a rate nor an ELBO.
    """

    is_density: bool = False
    has_rate: bool = True

    @property
    def unit(self) -> str:
        """Unit of a negative ELBO per pixel and channel."""
        return "nats/dim of a density" if self.is_density else "bits/dim"

    @property
    def nats(self) -> str:
        """Unit of a number in nats per image."""
        return "nats of a density" if self.is_density else "nats"

    def per_dim(self, bits_per_dim: float) -> float:
        """Convert a recorded ``bits_per_dim`` to :attr:`unit`."""
        return bits_per_dim * math.log(2.0) if self.is_density else bits_per_dim

    def shows(self, name: str) -> bool:
        """True if the recorded number ``name``, with or without a prefix such as ``val/``, means something for the model."""
        group, _, last = name.rpartition("/")
        if last.endswith(("bits_per_dim", "bits_per_dim_95")):
            return self.has_rate and not self.is_density
        return self.has_rate or not (last in OF_THE_RATE or group.startswith("kl_group"))
