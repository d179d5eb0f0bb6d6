"""The flat VAE: an encoder, one group of latents with a standard-normal prior, and a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flat_vae import networks
from flat_vae.config import FlatVAEConfig, Initialisation
from metrics.decisions import Decision
from metrics.elbo import Group, VAEOutput
from metrics.likelihoods import ImageSpec
from metrics.model import VAE, Features
from metrics.normal import Normal, at_least_float32
from metrics.pixel_head import PixelHead

View = Callable[[Tensor], Tensor]


class FlatVAE(VAE):
    """Variational autoencoder with one group of D latents (Kingma & Welling 2013).

    Args:
        config: network, latents, likelihood.
        spec: channels, height, width and num_bits of the images.

    Raises:
        ValueError: the network does not accept images of this size; the message names those that do.
    """

    def __init__(self, config: FlatVAEConfig, spec: ImageSpec) -> None:
        super().__init__(spec)
        self.config = config
        self.pixel_head = PixelHead(
            spec=spec,
            likelihood=config.likelihood,
            num_mixtures=config.num_mixtures,
            normal_std=config.normal_std,
        )
        network = networks.build(config, spec, self.pixel_head.num_parameters)
        self.encoder, self.decoder = network.encoder, network.decoder
        self.mean = nn.Linear(network.num_features, config.latent_dim)
        self.log_variance = nn.Linear(network.num_features, config.latent_dim)
        by_network: Initialisation = "glorot" if config.network == "mlp" else "he"
        networks.initialise(self, by_network if config.init == "auto" else config.init)
        # activations take the layout of the kernels; this one shortens a step on Frey faces on a CPU by 12 %
        self.to(memory_format=torch.channels_last)

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile encoder and decoder in place, for training; names of parameters stay as they are."""
        self.encoder.compile(dynamic=False, backend=backend)
        self.decoder.compile(dynamic=False, backend=backend)

    @property
    def group_shapes(self) -> list[tuple[int]]:
        """``[(D,)]``: one group."""
        return [(self.config.latent_dim,)]

    def bottom_up(self, x: Tensor) -> Features:
        """Features ``[B, F]`` of images ``[B, C, H, W]`` in [0, 1]."""
        self.check_images(x)
        return Features((self.encoder(x),))

    def descend(
        self, decisions: Sequence[Decision], features: Features | None = None, num: int | None = None
    ) -> list[Group]:
        """The one group of :meth:`top_down`, without the decoder."""
        batch = self.check_decisions(decisions, features, num)
        if features is None:
            zeros = self.mean.weight.new_zeros(batch, self.config.latent_dim)
            prior = posterior = Normal(zeros, torch.ones_like(zeros))
        else:
            (h,) = features.tensors
            mean, log_variance = at_least_float32(self.mean(h)), at_least_float32(self.log_variance(h))
            posterior = Normal(mean, torch.exp(0.5 * log_variance))
            prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
        return [Group(decisions[0].draw(prior, posterior), posterior, prior)]

    def top_down(
        self,
        decisions: Sequence[Decision],
        features: Features | None = None,
        num: int | None = None,
        view: View | None = None,
    ) -> VAEOutput:
        """Latents as decided and p(x | z), see :meth:`metrics.model.VAE.top_down`; for ``view`` see :meth:`forward`."""
        groups = self.descend(decisions, features, num)
        z = groups[0].z
        return VAEOutput(self.pixel_head(self.decoder(z if view is None else view(z))), groups)

    def forward(self, x: Tensor, noise: Sequence[Tensor] | None = None, view: View | None = None) -> VAEOutput:
        """Posterior and likelihood of images ``[B, C, H, W]`` in [0, 1], with latents sampled from the posterior.

        Args:
            x: images.
            noise: one standard-normal tensor ``[B, D]`` in a list; None samples it.
            view: map from the latents to the decoder's inputs, ``[B, D] -> [V * B, D]``, for objectives that
                decode parts of the latents; the likelihood then holds V distributions for each image. It is applied inside
                the model so that DistributedDataParallel and autocast cover it. None: the latents themselves.
        """
        return self.top_down(self.posterior_samples(noise), self.bottom_up(x), view=view)
