"""Likelihoods p(x | z) of images, shared by all models so that their bits per dimension can be compared.

Images are float ``[B, C, H, W]`` in [0, 1] on the grid k / (2^bits - 1). Every likelihood computes in at least float32,
also under autocast. The mixture of discretised logistics is that of Salimans et al. 2017 (PixelCNN++) with the parameter
layout of the published NVAE.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.normal import Normal, at_least_float32

Edges = Literal["exact", "legacy"]
MIN_LOG_SCALE = -7.0
UNIFORM_MARGIN = 1e-5  # published: u in (1e-5, 1 - 1e-5), so that neither logarithm overflows


class ImageSpec(Protocol):
    """The shape and bit depth of images: all that a likelihood or a model knows about its data."""

    @property
    def channels(self) -> int:
        """Number of channels: 1 for grey, 3 for colour."""

    @property
    def height(self) -> int:
        """Height in pixels."""

    @property
    def width(self) -> int:
        """Width in pixels."""

    @property
    def num_bits(self) -> int:
        """Bit depth: pixels take 2^num_bits values."""


class Likelihood(Protocol):
    """p(x | z) for a batch of images."""

    @property
    def mean(self) -> Tensor:
        """Expected image, [B, C, H, W] in [0, 1]."""

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Nats per pixel: [B, H, W] if the channels are modelled jointly, else [B, C, H, W]."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats per image, [B]."""

    def sample(self, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """An image drawn from the likelihood, [B, C, H, W] in [0, 1]; a lower temperature means less noise."""


def _uniform_like(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
    return noise.clamp(UNIFORM_MARGIN, 1.0 - UNIFORM_MARGIN)


def check_pixels(x: Tensor) -> None:
    """Refuse images with values outside [0, 1], on a CPU; on a GPU the check would make every step wait.

    Inside ``torch.vmap`` and compiled functions the values cannot be read, so nothing is checked. NaN passes, because
    the trainer handles steps that are not finite.

    Raises:
        ValueError: the smallest or the largest value lies outside [0, 1].
    """
    is_traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)
    if not x.is_cpu or is_traced or x.numel() == 0:
        return
    low, high = (float(bound) for bound in x.detach().aminmax())
    if low < 0.0 or high > 1.0:
        raise ValueError(
            f"images have values from {low:g} to {high:g}; give values in [0, 1] (8-bit levels: divide them by 255)"
        )


@dataclass(frozen=True)
class Bernoulli:
    """Independent Bernoulli pixels from logits [B, C, H, W].

    Targets may be grey values in [0, 1]. The result is then a cross entropy and not a likelihood, as in much of the
    literature.
    """

    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """Probability of white, [B, C, H, W]."""
        return torch.sigmoid(at_least_float32(self.logits))

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Nats per pixel and channel, [B, C, H, W].

        Raises:
            ValueError: values of ``x`` outside [0, 1], see :func:`check_pixels`.
        """
        check_pixels(x)
        return -F.binary_cross_entropy_with_logits(at_least_float32(self.logits), x, reduction="none")

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats per image, [B]."""
        return self.log_prob_map(x).flatten(1).sum(1)

    def sample(self, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Binary pixels; the logits are divided by ``temperature``."""
        probability = torch.sigmoid(at_least_float32(self.logits) / temperature)
        noise = torch.rand(probability.shape, dtype=probability.dtype, device=probability.device, generator=generator)
        return (noise < probability).to(probability.dtype)


@dataclass(frozen=True)
class Gaussian:
    """Continuous Gaussian density on pixels scaled to [-1, 1] (NVAE's Normal decoder and the flat VAE's).

    Because it is a density, its nats may be negative, and its "bits per dimension" cannot be compared with those of
    a discrete likelihood.

    Args:
        normal: belief about 2x - 1, each tensor [B, C, H, W].
    """

    normal: Normal

    @property
    def mean(self) -> Tensor:
        """Expected image, clamped to [0, 1]."""
        return ((self.normal.mean + 1.0) / 2.0).clamp(0.0, 1.0)

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Nats per pixel and channel, [B, C, H, W], of the density of 2x - 1."""
        check_pixels(x)
        return self.normal.log_prob(2.0 * x - 1.0)

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats per image, [B]."""
        return self.log_prob_map(x).flatten(1).sum(1)

    def sample(self, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """A draw with the standard deviation multiplied by ``temperature``, clamped to [0, 1]."""
        like = self.normal.mean
        noise = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        return ((self.normal.tempered(temperature).rsample(noise) + 1.0) / 2.0).clamp(0.0, 1.0)


def num_mixture_parameters(channels: int, num_mixtures: int) -> int:
    """Output channels that :class:`DiscretizedLogisticMixture` needs: 10 per component for colour, 3 for grey."""
    return num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def _pairs(channels: int) -> list[tuple[int, int]]:
    """(channel, earlier channel whose pixel shifts its mean), in the order of the coefficients."""
    return [(c, earlier) for c in range(channels) for earlier in range(c)]


def _block_sizes(channels: int) -> list[int]:
    """Number of coefficients in each channel's block: one in each for colour, as published."""
    count = len(_pairs(channels))
    return [count // channels + (c < count % channels) for c in range(channels)]


def log_bin_mass(level: Tensor, mean: Tensor, log_scale: Tensor, num_bits: int) -> Tensor:
    """Exact log mass of a logistic in the bin of an integer level, in nats; any broadcastable shapes.

    The 2^bits - 1 inner edges lie midway between neighbouring grid points of [-1, 1]; the outermost bins hold the
    tails. A bin's mass is sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which does not suffer
    from cancellation. Neighbouring bins compute their common edge by the same operations, so the masses sum to one up
    to rounding for every mean and scale, also in float32.
    """
    top = 2**num_bits - 1
    inverse_scale = torch.exp(-log_scale)
    upper = inverse_scale * ((2.0 * level + 1.0 - top) / top - mean)
    lower = inverse_scale * ((2.0 * level - 1.0 - top) / top - mean)
    # If the scale is much larger than the bin, upper - lower may round to 0; the floor keeps the logarithm finite.
    log_width = torch.log(-torch.expm1(-(upper - lower).clamp_min(1e-12)))
    below_upper, above_lower = F.logsigmoid(upper), F.logsigmoid(-lower)
    inner = below_upper + above_lower + log_width
    return torch.where(level <= 0, below_upper, torch.where(level >= top, above_lower, inner))


def log_bin_mass_published(scaled: Tensor, mean: Tensor, log_scale: Tensor, num_bits: int) -> Tensor:
    """Log mass of a pixel ``scaled`` to [-1, 1] by the published NVAE's rule, to reproduce its figures.

    With 8 bits it gives value 254 the open upper tail as well, because it tests for x > 0.99 and 254/255 scales to
    0.992. The masses therefore sum to more than one, up to 1.95 near the top.
    """
    top = 2**num_bits - 1
    inverse_scale = torch.exp(-log_scale)
    centred = scaled - mean
    upper, lower, middle = (
        inverse_scale * (centred + 1 / top),
        inverse_scale * (centred - 1 / top),
        inverse_scale * centred,
    )
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    log_density = middle - log_scale - 2.0 * F.softplus(middle)
    inner = torch.where(mass > 1e-5, torch.log(mass.clamp_min(1e-10)), log_density - math.log(top / 2))
    return torch.where(scaled < -0.999, F.logsigmoid(upper), torch.where(scaled > 0.99, F.logsigmoid(-lower), inner))


class DiscretizedLogisticMixture:
    """Mixture of logistics over the 2^bits values of a pixel, channels in sequence (Salimans et al. 2017, sec. 2).

    Component m's mean of channel c is shifted by tanh(coefficient) times the pixel's earlier channels. Parameter
    layout along dim 1, as NVAE published it for colour: M mixture logits, then for each channel a block of M means, M
    log-scales and its share of the coefficients in the order g<-r, b<-r, b<-g.

    Args:
        parameters: ``[B, num_mixture_parameters(C, M), H, W]``.
        channels: C.
        num_bits: pixels are k / (2^num_bits - 1).
        edges: "exact" makes the bins probabilities, which sum to one. "legacy" reproduces the published NVAE: its rule
            for the bins, and sampling that divides the scale by the temperature and leaves pixels continuous.
    """

    def __init__(self, parameters: Tensor, channels: int, num_bits: int, edges: Edges = "exact") -> None:
        parameters = at_least_float32(parameters)
        num_mixtures = parameters.shape[1] // num_mixture_parameters(channels, 1)
        if parameters.shape[1] != num_mixture_parameters(channels, num_mixtures):
            raise ValueError(
                f"{parameters.shape[1]} parameters per pixel are not a whole number of components for {channels} channels; "
                f"give a multiple of {num_mixture_parameters(channels, 1)}"
            )
        blocks = _block_sizes(channels)
        sizes = [num_mixtures] + [num_mixtures * (2 + count) for count in blocks]
        logits, *per_channel = parameters.split(sizes, dim=1)
        self.logits = logits  # [B, M, H, W]
        split = [block.unflatten(1, (-1, num_mixtures)) for block in per_channel]  # each [B, 2 + count, M, H, W]
        self.means = torch.stack([block[:, 0] for block in split], dim=1)  # [B, C, M, H, W]
        self.log_scales = torch.stack([block[:, 1] for block in split], dim=1).clamp_min(MIN_LOG_SCALE)
        coefficients = [block[:, 2 + i] for block, count in zip(split, blocks, strict=True) for i in range(count)]
        self.coefficients = dict(zip(_pairs(channels), [torch.tanh(c) for c in coefficients], strict=True))
        self.channels, self.num_bits, self.edges = channels, num_bits, edges

    def with_edges(self, edges: Edges) -> DiscretizedLogisticMixture:
        """The same mixture with other edges, to score both without a second forward pass."""
        other: DiscretizedLogisticMixture = copy.copy(self)
        other.edges = edges
        return other

    def _means_given(self, scaled: Tensor) -> Tensor:
        """[B, C, M, H, W]: means shifted by the earlier channels of ``scaled`` [B, C, H, W] in [-1, 1]."""
        return torch.stack([self._mean_given(c, list(scaled.unsqueeze(2).unbind(1))) for c in range(self.channels)], 1)

    def _mean_given(self, channel: int, scaled: list[Tensor]) -> Tensor:
        mean = self.means[:, channel]
        for earlier in range(channel):
            mean = mean + self.coefficients[channel, earlier] * scaled[earlier]
        return mean

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Nats per pixel, channels jointly, [B, H, W]."""
        check_pixels(x)
        scaled = 2.0 * x - 1.0
        means = self._means_given(scaled)
        if self.edges == "exact":
            level = torch.round(x * (2**self.num_bits - 1)).unsqueeze(2)
            log_mass = log_bin_mass(level, means, self.log_scales, self.num_bits)
        else:
            log_mass = log_bin_mass_published(scaled.unsqueeze(2), means, self.log_scales, self.num_bits)
        return torch.logsumexp(F.log_softmax(self.logits, dim=1) + log_mass.sum(1), dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Nats per image, [B]."""
        return self.log_prob_map(x).flatten(1).sum(1)

    @property
    def mean(self) -> Tensor:
        """Means and coefficients averaged over the components, channels in sequence, clamped; [B, C, H, W] in [0, 1].

        This is the published rule. The clamping and the product of averages make it differ from the expectation.
        """
        weights = F.softmax(self.logits, dim=1)
        scaled: list[Tensor] = []
        for c in range(self.channels):
            value = (weights * self.means[:, c]).sum(1)
            for earlier in range(c):
                value = value + (weights * self.coefficients[c, earlier]).sum(1) * scaled[earlier]
            scaled.append(value.clamp(-1.0, 1.0))
        return (torch.stack(scaled, dim=1) + 1.0) / 2.0

    def sample(
        self,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """A draw, [B, C, H, W] in [0, 1]: a component by Gumbel-argmax, then each channel given the earlier ones.

        Args:
            temperature: divides the mixture logits and multiplies the logistics' scale ("legacy" divides it).
            generator: source of the uniforms if ``noise`` is not given.
            noise: uniforms for the component [B, M, H, W] and for the pixels [B, C, H, W].
        """
        batch, _, _, height, width = self.means.shape
        if noise is None:
            noise = (
                _uniform_like(tuple(self.logits.shape), self.logits, generator),
                _uniform_like((batch, self.channels, height, width), self.logits, generator),
            )
        u_component, u_pixel = noise
        gumbel = -torch.log(-torch.log(u_component))
        component = (self.logits / temperature + gumbel).argmax(dim=1, keepdim=True)  # [B, 1, H, W]
        scale_factor = temperature if self.edges == "exact" else 1.0 / temperature
        logistic = torch.log(u_pixel) - torch.log1p(-u_pixel)
        scaled: list[Tensor] = []
        for c in range(self.channels):
            mean = self._mean_given(c, [value.unsqueeze(1) for value in scaled]).gather(1, component).squeeze(1)
            scale = torch.exp(self.log_scales[:, c].gather(1, component)).squeeze(1) * scale_factor
            scaled.append(self._on_grid((mean + scale * logistic[:, c]).clamp(-1.0, 1.0)))
        return (torch.stack(scaled, dim=1) + 1.0) / 2.0

    def _on_grid(self, scaled: Tensor) -> Tensor:
        """The nearest of the 2^bits values: a rounded draw from a logistic is a draw from its bins."""
        if self.edges == "legacy":
            return scaled
        top = 2**self.num_bits - 1
        rounded: Tensor = torch.round((scaled + 1.0) / 2.0 * top) / top * 2.0 - 1.0
        return rounded

    def channel_pmf(self, channel: int, x: Tensor) -> Tensor:
        """Probability of every value of one channel given the earlier channels of ``x``: [B, H, W, 2^bits].

        Entropy coders need these probabilities. Component weights are conditional on the earlier channels (Bayes'
        rule), so the product over channels is ``exp(log_prob_map(x))`` with exact edges. Masses are differences of a
        CDF in float64 with an absolute error of 1e-15; accurate logarithms would take ten times as long.
        """
        means = self._means_given(2.0 * x - 1.0)
        level = torch.round(x * (2**self.num_bits - 1)).unsqueeze(2)
        log_mass = log_bin_mass(level[:, :channel], means[:, :channel], self.log_scales[:, :channel], self.num_bits)
        weight = F.softmax(F.log_softmax(self.logits, dim=1) + log_mass.sum(1), dim=1).double()
        top = 2**self.num_bits - 1
        edges = (2.0 * torch.arange(top, dtype=torch.float64, device=x.device) + 1.0 - top) / top
        inverse_scale = torch.exp(-self.log_scales[:, channel].double())
        cdf = torch.sigmoid((edges - means[:, channel, ..., None].double()) * inverse_scale[..., None])
        mixed = (weight.unsqueeze(-1) * cdf).sum(1)  # [B, H, W, 2^bits - 1]
        outer = mixed.new_zeros(*mixed.shape[:-1], 1)
        masses = torch.diff(mixed, prepend=outer, append=outer + 1.0).clamp_min(0.0)
        pmf: Tensor = masses.to(self.logits.dtype)
        return pmf


def discretized_logistic(parameters: Tensor, channels: int, num_bits: int) -> DiscretizedLogisticMixture:
    """One logistic for each pixel and channel, independent given the latents, from ``[B, 2 C, H, W]``: means, log-scales.

    It is a mixture of one component without coefficients. As no channel predicts another, colours must be encoded in
    the latents.
    """
    means, log_scales = (half.unbind(1) for half in parameters.chunk(2, dim=1))
    zero = torch.zeros_like(means[0])
    layout = [zero]  # the logit of the component
    for mean, log_scale, count in zip(means, log_scales, _block_sizes(channels), strict=True):
        layout += [mean, log_scale, *[zero] * count]
    return DiscretizedLogisticMixture(torch.stack(layout, dim=1), channels, num_bits)
