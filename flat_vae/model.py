"""The flat VAE: an encoder, one group of latents with a standard-normal prior, and a decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flat_vae import networks
from flat_vae.config import FlatVAEConfig, Initialisation
from metrics.elbo import Group, VAEOutput
from metrics.likelihoods import (
    Bernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    ImageSpec,
    Likelihood,
    num_mixture_parameters,
)
from metrics.normal import Normal

View = Callable[[Tensor], Tensor]


def _in_float32(tensor: Tensor) -> Tensor:
    """Beliefs are computed in at least float32 whatever autocast made of the network's output."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class Features:
    """What the bottom-up pass leaves: the posterior q(z | x), tensors [B, D]."""

    posterior: Normal

    def repeat(self, times: int) -> Features:
        """Every image ``times`` times in a row along the batch, for several draws from one bottom-up pass."""
        mean, std = (t.repeat_interleave(times, dim=0) for t in (self.posterior.mean, self.posterior.std))
        return Features(Normal(mean, std))


class FlatVAE(nn.Module):
    """Variational autoencoder with one group of D latents (Kingma & Welling 2013).

    Args:
        config: network, latents, likelihood.
        spec: channels, height, width and num_bits of the images.

    Raises:
        ValueError: the network does not take images of this size; those that do are named.
    """

    def __init__(self, config: FlatVAEConfig, spec: ImageSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        network = networks.build(config, spec, self._num_parameters())
        self.encoder, self.decoder = network.encoder, network.decoder
        self.mean = nn.Linear(network.num_features, config.latent_dim)
        self.log_variance = nn.Linear(network.num_features, config.latent_dim)
        by_network: Initialisation = "glorot" if config.network == "mlp" else "he"
        networks.initialise(self, by_network if config.init == "auto" else config.init)
        self.to(memory_format=torch.channels_last)  # of the kernels; activations follow: 12 % of a Frey step on a CPU

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile encoder and decoder in place, for training; names of parameters stay as they are."""
        self.encoder.compile(dynamic=False, backend=backend)
        self.decoder.compile(dynamic=False, backend=backend)

    @property
    def group_shapes(self) -> list[tuple[int]]:
        """``[(D,)]``: one group."""
        return [(self.config.latent_dim,)]

    @property
    def likelihood_name(self) -> Literal["bernoulli", "mixture", "normal"]:
        """The likelihood in use."""
        if self.config.likelihood == "auto":
            return "bernoulli" if self.spec.num_bits == 1 else "mixture"
        return self.config.likelihood

    def _num_parameters(self) -> int:
        channels = self.spec.channels
        sizes = {
            "bernoulli": channels,
            "mixture": num_mixture_parameters(channels, self.config.num_mixtures),
            "normal": channels if self.config.normal_std else 2 * channels,
        }
        return sizes[self.likelihood_name]

    def likelihood(self, parameters: Tensor) -> Likelihood:
        """p(x | z) from the decoder's output ``[B, P, H, W]``.

        A learnt std of likelihood normal is at least half the distance of two grey levels: below that a density would
        be rewarded without bound for pixels that lie on the grid.
        """
        parameters = _in_float32(parameters)
        if self.likelihood_name == "bernoulli":
            return Bernoulli(parameters)
        if self.likelihood_name == "mixture":
            return DiscretizedLogisticMixture(parameters, self.spec.channels, self.spec.num_bits)
        if self.config.normal_std is not None:
            return Gaussian(Normal(parameters, parameters.new_full((), self.config.normal_std)))
        mean, raw_std = parameters.chunk(2, dim=1)
        half_level = 1.0 / (2**self.spec.num_bits - 1)
        return Gaussian(Normal(mean, nn.functional.softplus(raw_std) + half_level))

    def bottom_up(self, x: Tensor) -> Features:
        """Posterior of images ``[B, C, H, W]`` in [0, 1]."""
        expected = (self.spec.channels, self.spec.height, self.spec.width)
        if x.dim() != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"images of shape {tuple(x.shape)} do not fit the model; give [B, {', '.join(map(str, expected))}]"
            )
        h = self.encoder(x)
        mean, log_variance = _in_float32(self.mean(h)), _in_float32(self.log_variance(h))
        return Features(Normal(mean, torch.exp(0.5 * log_variance)))

    def from_features(
        self, features: Features, noise: Sequence[Tensor] | None = None, view: View | None = None
    ) -> VAEOutput:
        """The forward pass after :meth:`bottom_up`."""
        posterior = features.posterior
        z = posterior.rsample(self._only(noise, "noise"))
        prior = Normal(torch.zeros_like(z), torch.ones_like(z))
        parameters = self.decoder(z if view is None else view(z))
        return VAEOutput(self.likelihood(parameters), [Group(z, posterior, prior)])

    def forward(self, x: Tensor, noise: Sequence[Tensor] | None = None, view: View | None = None) -> VAEOutput:
        """Beliefs about images ``[B, C, H, W]`` in [0, 1] with latents sampled from their posterior.

        Args:
            x: images.
            noise: one standard-normal tensor ``[B, D]`` in a list; None draws it.
            view: what the decoder gets to see of the drawn latents, ``[B, D] -> [V * B, D]``, for objectives that decode
                parts of them; the likelihood then holds V beliefs about each image. In here, so that DDP and autocast
                cover it. None: the latents.
        """
        return self.from_features(self.bottom_up(x), noise, view)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Posterior means, ``[[B, D]]``."""
        return [self.bottom_up(x).posterior.mean]

    def decode(self, zs: Sequence[Tensor]) -> Likelihood:
        """p(x | z) for latents ``[[B, D]]``."""
        z = self._only(zs, "zs")
        if z is None or z.dim() != 2 or z.shape[1] != self.config.latent_dim:
            shape = None if z is None else tuple(z.shape)
            raise ValueError(f"latents of shape {shape} do not fit the model; give [B, {self.config.latent_dim}]")
        return self.likelihood(self.decoder(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The likelihood's mean at the posterior means, ``[B, C, H, W]`` in [0, 1]."""
        return self.decode(self.encode(x)).mean

    @torch.no_grad()
    def sample(
        self,
        num: int,
        temperature: float = 1.0,
        noise: Sequence[Tensor] | None = None,
        pixels: Literal["mean", "sample"] = "mean",
        generator: torch.Generator | None = None,
        pixel_temperature: float = 1.0,
    ) -> Tensor:
        """Images from the prior, ``[num, C, H, W]`` in [0, 1].

        Args:
            num: images.
            temperature: factor on the prior's std.
            noise: standard-normal ``[[num, D]]``; None draws it.
            pixels: the likelihood's mean, or a draw from it.
            generator: source of all draws.
            pixel_temperature: of the pixel draw; lower means less noise.
        """
        if num < 1 or pixels not in ("mean", "sample"):
            raise ValueError(f"num is {num}, pixels is {pixels!r}; give num of at least 1 and pixels mean or sample")
        for value in (temperature, pixel_temperature):
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(
                    f"temperature is {value}; give a number above 0, e.g. 0.7 (1 samples the model as trained)"
                )
        z = self._only(noise, "noise")
        if z is None:
            weight = self.mean.weight
            device = weight.device if generator is None else generator.device
            z = torch.randn(num, self.config.latent_dim, device=device, dtype=weight.dtype, generator=generator)
            z = z.to(weight.device)
        likelihood = self.decode([temperature * z])
        return likelihood.mean if pixels == "mean" else likelihood.sample(pixel_temperature, generator)

    @staticmethod
    def _only(values: Sequence[Tensor] | None, name: str) -> Tensor | None:
        if values is None:
            return None
        if len(values) != 1:
            raise ValueError(f"{name} has {len(values)} tensors for 1 group; give one, [B, D]")
        return values[0]
