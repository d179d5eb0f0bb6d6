"""The pixel head: the number of parameters per pixel that a likelihood needs, and the likelihood that they describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from metrics.likelihoods import (
    Bernoulli,
    DiscretizedLogisticMixture,
    Edges,
    Gaussian,
    ImageSpec,
    Likelihood,
    discretized_logistic,
    num_mixture_parameters,
)
from metrics.normal import Normal, at_least_float32

LikelihoodName = Literal["auto", "bernoulli", "mixture", "logistic", "normal"]


@dataclass(frozen=True, kw_only=True)
class PixelHead:
    """Map from a decoder's output ``[B, num_parameters, H, W]`` to p(x | z).

    Args:
        spec: channels and bits of the images.
        likelihood: bernoulli, mixture (of discretised logistics, where earlier channels of a pixel shift the means of
            later ones), logistic (one discretised logistic, channels independent) or normal; auto takes bernoulli for
            1-bit images and mixture for all others.
        num_mixtures: components of the mixture.
        edges: bins of the mixture, see :class:`metrics.likelihoods.DiscretizedLogisticMixture`.
        normal_std: fixed standard deviation of the normal likelihood, in pixels scaled to [-1, 1]; None: the decoder
            outputs one per pixel and channel.
        raw_normal: the normal likelihood from raw means and raw scales. By default the standard deviation is a
            softplus plus half the distance between two grey levels. Without that floor the density of pixels that lie
            on a grid has no upper bound.
    """

    spec: ImageSpec
    likelihood: LikelihoodName = "auto"
    num_mixtures: int = 10
    edges: Edges = "exact"
    normal_std: float | None = None
    raw_normal: Callable[[Tensor, Tensor], Normal] | None = None

    @property
    def name(self) -> Literal["bernoulli", "mixture", "logistic", "normal"]:
        """Likelihood in use."""
        if self.likelihood == "auto":
            return "bernoulli" if self.spec.num_bits == 1 else "mixture"
        return self.likelihood

    @property
    def num_parameters(self) -> int:
        """Output channels that the decoder must have."""
        channels = self.spec.channels
        if self.name == "mixture":
            return num_mixture_parameters(channels, self.num_mixtures)
        has_scales = self.name == "logistic" or (self.name == "normal" and self.normal_std is None)
        return 2 * channels if has_scales else channels

    def __call__(self, parameters: Tensor) -> Likelihood:
        """p(x | z) in at least float32, from the decoder's output at the size of the images."""
        parameters = at_least_float32(parameters)
        if self.name == "bernoulli":
            return Bernoulli(parameters)
        if self.name == "mixture":
            return DiscretizedLogisticMixture(parameters, self.spec.channels, self.spec.num_bits, self.edges)
        if self.name == "logistic":
            return discretized_logistic(parameters, self.spec.channels, self.spec.num_bits)
        if self.normal_std is not None:
            return Gaussian(Normal(parameters, parameters.new_full((), self.normal_std)))
        return Gaussian((self.raw_normal or self._softplus)(*parameters.chunk(2, dim=1)))

    def _softplus(self, mean: Tensor, raw_std: Tensor) -> Normal:
        half_level = 1.0 / (2**self.spec.num_bits - 1)
        return Normal(mean, F.softplus(raw_std) + half_level)
