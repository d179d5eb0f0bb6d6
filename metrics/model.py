"""The interface of every model: a family writes a bottom-up and a top-down pass, and everything else follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from metrics.decisions import Decision, Fixed, PosteriorMean, PosteriorSample, PriorSample, check_temperature
from metrics.elbo import Group, VAEOutput
from metrics.likelihoods import ImageSpec, Likelihood, check_pixels


@dataclass(frozen=True)
class Features:
    """Result of a bottom-up pass: tensors ``[B, ...]`` from which the model's top-down pass forms its posteriors."""

    tensors: tuple[Tensor, ...]

    @property
    def num(self) -> int:
        """Number of images, B."""
        return len(self.tensors[0])

    def repeat(self, times: int) -> Features:
        """Each image ``times`` times in a row, for several draws from one bottom-up pass."""
        return Features(tuple(tensor.repeat_interleave(times, dim=0) for tensor in self.tensors))


class VAE(nn.Module, ABC):
    """A variational autoencoder with one or more groups of latents, top group first.

    A model family implements :attr:`group_shapes`, :meth:`bottom_up` and :meth:`top_down`. A flat VAE has one group; a
    hierarchical VAE has many. No code outside the family needs to know which.

    Args:
        spec: channels, height, width and num_bits of the images.
    """

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec = spec

    if TYPE_CHECKING:  # nn.Module types its call as Any

        def __call__(self, *args: Any, **kwargs: Any) -> VAEOutput:
            """Distributions of a forward pass, see :meth:`forward`."""

    @property
    @abstractmethod
    def group_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shape of each group's latents without the batch, top group first: ``(C, H, W)``, or ``(D,)``."""

    @abstractmethod
    def bottom_up(self, x: Tensor) -> Features:
        """Features of images ``[B, C, H, W]`` in [0, 1]; they serve any number of top-down passes.

        Begin an implementation with :meth:`check_images`.
        """

    @abstractmethod
    def top_down(
        self, decisions: Sequence[Decision], features: Features | None = None, num: int | None = None
    ) -> VAEOutput:
        """Pass from the top group to the image, with the latents of each group chosen by its decision.

        Begin an implementation with :meth:`check_decisions`.

        Args:
            decisions: one per group, top group first.
            features: result of :meth:`bottom_up`. Without features, every posterior equals its prior.
            num: batch size if there are no features.
        """

    def descend(
        self, decisions: Sequence[Decision], features: Features | None = None, num: int | None = None
    ) -> list[Group]:
        """Groups of :meth:`top_down` without the likelihood; families override it to save the last layers."""
        return list(self.top_down(decisions, features, num).groups)

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile the model's parts in place for training; names of parameters stay as they are."""
        for child in self.children():
            child.compile(dynamic=False, backend=backend)

    def forward(self, x: Tensor, noise: Sequence[Tensor] | None = None) -> VAEOutput:
        """Distributions for images ``[B, C, H, W]`` in [0, 1], with latents drawn from their posteriors.

        ``noise`` is one standard-normal tensor ``[B, *group_shapes[i]]`` per group, top group first; None draws it.
        """
        return self.from_features(self.bottom_up(x), noise)

    def from_features(self, features: Features, noise: Sequence[Tensor] | None = None) -> VAEOutput:
        """Forward pass after :meth:`bottom_up`, e.g. on ``features.repeat(K)`` for K draws per image."""
        return self.top_down(self.posterior_samples(noise), features)

    def groups_at_means(self, x: Tensor) -> list[Group]:
        """Groups of images ``[B, C, H, W]`` in [0, 1], each at its posterior mean given the means above it."""
        check_pixels(x)
        return self.descend([PosteriorMean()] * len(self.group_shapes), self.bottom_up(x))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Latents at the posterior means, one tensor per group, each group given the means above it; no sampling.

        With normalising flows these are the transformed means, i.e. what the decoder sees.
        """
        return [group.z for group in self.groups_at_means(x)]

    def decode(self, zs: Sequence[Tensor]) -> Likelihood:
        """p(x | z) for latents ``[B, *group_shapes[i]]`` of all groups, top group first."""
        self._check_count("zs", zs)
        for z, shape in zip(zs, self.group_shapes, strict=True):
            if z.shape != (zs[0].shape[0], *shape):
                raise ValueError(
                    f"latents of shape {tuple(z.shape)} do not fit the model; give [B, {', '.join(map(str, shape))}]"
                )
        return self.top_down([Fixed(z) for z in zs], num=len(zs[0])).likelihood

    def reconstruct(self, x: Tensor) -> Tensor:
        """Mean of the likelihood with all latents at their posterior means, ``[B, C, H, W]`` in [0, 1]."""
        check_pixels(x)
        return self.top_down([PosteriorMean()] * len(self.group_shapes), self.bottom_up(x)).likelihood.mean

    @torch.no_grad()
    def sample(
        self,
        num: int,
        temperature: float | Sequence[float] = 1.0,
        noise: Sequence[Tensor] | None = None,
        pixels: Literal["mean", "sample"] = "mean",
        generator: torch.Generator | None = None,
        pixel_temperature: float = 1.0,
    ) -> Tensor:
        """Images drawn from the prior, ``[num, C, H, W]`` in [0, 1].

        Args:
            num: number of images.
            temperature: factor on the standard deviation of every prior, the top group's included; one for all groups
                or one per group, top group first.
            noise: one standard-normal tensor ``[num, *group_shapes[i]]`` per group; None draws it.
            pixels: the likelihood's mean, or a draw from the likelihood.
            generator: source of all draws.
            pixel_temperature: temperature of the pixel draw; lower means less noise.
        """
        if num < 1 or pixels not in ("mean", "sample"):
            raise ValueError(f"num is {num}, pixels is {pixels!r}; give num of at least 1 and pixels mean or sample")
        count = len(self.group_shapes)
        temperatures = [temperature] * count if isinstance(temperature, int | float) else list(temperature)
        if len(temperatures) != count:
            raise ValueError(f"{len(temperatures)} temperatures for {count} groups; give one number or one per group")
        for value in (*temperatures, pixel_temperature):
            check_temperature(value)
        decisions = [PriorSample(t, eps, generator) for t, eps in zip(temperatures, self._noise(noise), strict=True)]
        likelihood = self.top_down(decisions, num=num).likelihood
        return likelihood.mean if pixels == "mean" else likelihood.sample(pixel_temperature, generator)

    def readjust_batch_norm(
        self,
        num_batches: int,
        batch_size: int,
        temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Re-estimate batch-norm statistics from samples at a temperature, in a family that has batch norms.

        Args:
            num_batches: batches of samples; the statistics are a plain average over them.
            batch_size: samples in each batch.
            temperature: see :meth:`sample`.
            generator: source of the draws.

        Raises:
            ValueError: the model has no batch norms.
            FloatingPointError: statistics that are not finite.
        """
        raise ValueError("this model has no batch norms to readjust; leave --readjust-bn out")

    def check_images(self, x: Tensor) -> None:
        """Refuse images of another shape or of an integer type.

        Raises:
            ValueError: ``x`` is not a floating-point tensor ``[B, C, H, W]`` of the model's image size.
        """
        expected = (self.spec.channels, self.spec.height, self.spec.width)
        if x.dim() != 4 or x.shape[1:] != expected:
            raise ValueError(
                f"images of shape {tuple(x.shape)} do not fit the model; give [B, {', '.join(map(str, expected))}]"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"images are of type {x.dtype}; divide the levels by {2**self.spec.num_bits - 1} "
                "to get floating-point values in [0, 1]"
            )

    def check_decisions(self, decisions: Sequence[Decision], features: Features | None, num: int | None) -> int:
        """Batch size of a top-down pass.

        Raises:
            ValueError: there is not one decision per group, or neither features nor ``num`` give a batch size.
        """
        if len(decisions) != len(self.group_shapes):
            raise ValueError(f"{len(decisions)} decisions for {len(self.group_shapes)} groups; give one per group")
        if features is not None:
            return features.num
        if num is None:
            raise ValueError("a top-down pass without features needs a batch size; give num")
        return num

    def posterior_samples(self, noise: Sequence[Tensor] | None = None) -> list[Decision]:
        """Decisions to draw every group from its posterior, with given standard-normal noise or fresh noise."""
        return [PosteriorSample(eps) for eps in self._noise(noise)]

    def _noise(self, noise: Sequence[Tensor] | None) -> Sequence[Tensor | None]:
        if noise is None:
            return [None] * len(self.group_shapes)
        self._check_count("noise", noise)
        return noise

    def _check_count(self, name: str, tensors: Sequence[Tensor]) -> None:
        count = len(self.group_shapes)
        if len(tensors) != count:
            raise ValueError(
                f"{name} has {len(tensors)} tensors for {count} {'group' if count == 1 else 'groups'}; "
                "give one per group, top group first"
            )
