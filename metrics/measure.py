"""Names for the numbers of an evaluation: which of them a model has, and in which unit they are printed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Quantity = Literal["probability", "density", "cross entropy"]
NOTES: dict[Quantity, str] = {
    "probability": "",
    "density": "A normal likelihood is a density: its numbers may have either sign and are not bits/dim",
    "cross entropy": "A Bernoulli likelihood of grey pixels is a cross entropy: its numbers are not bits/dim, and even perfect "
    "reconstructions leave the entropy of the grey values",
}
OF_THE_RATE = ("rate", "elbo", "negative_elbo", "active_units", "importance_bound")


@dataclass(frozen=True)
class Measure:
    """The kind of numbers that an evaluation gives.

    The records of a run hold every number under one set of names. This decides which of them are shown, and how.

    Args:
        of: what the likelihood is. Only that of a probability of the pixels gives bits/dim that can be compared with those of
            another likelihood: the nats of a density may have either sign and depend on the scale of the pixels, and those of
            a Bernoulli of grey pixels are a cross entropy.
        has_rate: the posterior is trained as a distribution. An autoencoder trains its mean alone, so it has a distortion
            but neither a rate nor an ELBO.
    """

    of: Quantity = "probability"
    has_rate: bool = True

    @property
    def is_probability(self) -> bool:
        """True if negative ELBOs are bits/dim."""
        return self.of == "probability"

    @property
    def note(self) -> str:
        """A sentence about numbers that are no bits/dim, without its full stop; empty for those that are."""
        return NOTES[self.of]

    @property
    def unit(self) -> str:
        """Unit of a negative ELBO per pixel and channel."""
        return "bits/dim" if self.is_probability else f"nats/dim of a {self.of}"

    @property
    def nats(self) -> str:
        """Unit of a number in nats per image."""
        return "nats" if self.is_probability else f"nats of a {self.of}"

    def per_dim(self, bits_per_dim: float) -> float:
        """Convert a recorded ``bits_per_dim`` to :attr:`unit`."""
        return bits_per_dim if self.is_probability else bits_per_dim * math.log(2.0)

    def shows(self, name: str) -> bool:
        """True if the recorded number ``name``, with or without a prefix such as ``val/``, means something for the model."""
        group, _, last = name.rpartition("/")
        if last.endswith(("bits_per_dim", "bits_per_dim_95")):
            return self.has_rate and self.is_probability
        return self.has_rate or not (last in OF_THE_RATE or group.startswith("kl_group"))


def quantity(likelihood: str, num_bits: int) -> Quantity:
    """Name what the likelihood ``likelihood`` is for pixels of ``num_bits`` bits."""
    if likelihood == "normal":
        return "density"
    return "cross entropy" if likelihood == "bernoulli" and num_bits > 1 else "probability"
