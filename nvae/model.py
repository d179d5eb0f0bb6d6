"""NVAE: a bottom-up pass that reads the image and one top-down pass that serves every use of the latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.elbo import Group, VAEOutput
from metrics.likelihoods import (
    Bernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    ImageSpec,
    Likelihood,
    num_mixture_parameters,
)
from nvae import towers
from nvae.cells import Cell, compile_cells, recomputed
from nvae.config import NVAEConfig
from nvae.convolution import WeightNormConv2d
from nvae.flows import FlowPair
from nvae.padding import Padding
from nvae.posterior import (
    Decision,
    Fixed,
    PosteriorMean,
    PosteriorSample,
    PriorSample,
    beliefs,
    check_temperature,
    normal_from_raw,
)

LAYOUT = torch.channels_last  # of weights and activations: what fast convolutions take, depthwise ones above all


@dataclass(frozen=True)
class Features:
    """What the bottom-up pass leaves for the posteriors: one ``[B, C_enc, H, W]`` per group, top group first."""

    groups: tuple[Tensor, ...]

    def repeat(self, times: int) -> Features:
        """Every image ``times`` times in a row along the batch, for several draws from one bottom-up pass."""
        return Features(tuple(feature.repeat_interleave(times, dim=0) for feature in self.groups))


class NVAE(nn.Module):
    """Deep hierarchical VAE (Vahdat & Kautz 2020).

    Images of any number of channels, size and bits: they are zero-padded evenly (an odd pixel at the bottom or right)
    to a multiple of ``config.stride`` and the likelihood's parameters are cropped back.

    Args:
        config: the architecture.
        spec: channels, height, width and num_bits of the images.

    Raises:
        ValueError: for images smaller than the stride.
    """

    def __init__(self, config: NVAEConfig, spec: ImageSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.padding = Padding.of(config, spec)
        num_groups, num_latents = sum(config.groups), config.latent_channels
        top_enc, top_dec = (width * config.top_multiplier for width in (config.channels_enc, config.channels_dec))
        if num_groups > 1:
            self.initial_state = nn.Parameter(torch.rand(top_dec, *self._size_at(config.top_multiplier)))
        patch_area = config.patch_size**2
        self.stem = WeightNormConv2d(spec.channels * patch_area, config.channels_enc, 3)
        self.preprocess = towers.preprocess_cells(config)
        self.encoder = towers.encoder_cells(config)
        self.encoder_top = WeightNormConv2d(top_enc, top_enc, 1)
        mults = [mult for mult, count in self._scales() for _ in range(count)]
        self.posterior_convs = nn.ModuleList(
            WeightNormConv2d(config.channels_enc * mult, 2 * num_latents, 3) for mult in mults
        )
        self.flows = nn.ModuleList(
            nn.Sequential(*(FlowPair(num_latents) for _ in range(config.num_flows))) for _ in range(num_groups)
        )
        self.prior_convs = nn.ModuleList(
            WeightNormConv2d(config.channels_dec * mult, 2 * num_latents, 1) for mult in mults[1:]
        )
        self.decoder = towers.decoder_cells(config)
        self.postprocess = towers.postprocess_cells(config)
        self.output_conv = WeightNormConv2d(config.channels_dec, self._num_parameters() * patch_area, 3)
        self.is_compiled = False
        self.layout = LAYOUT
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            if conv.kernel_size != (1, 1) and conv.groups == 1:  # elsewhere the two layouts are the same memory
                conv.to(memory_format=self.layout)

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile the cells in place (see :func:`nvae.cells.compile_cells`); for training, with one batch size."""
        self.is_compiled = True
        compile_cells([module for module in self.modules() if isinstance(module, Cell)], backend)

    def _scales(self) -> list[tuple[int, int]]:
        """(multiplier of the channels, groups) of each scale, lowest resolution first."""
        first = 2**self.config.preprocess_blocks
        return [(first * 2**scale, count) for scale, count in reversed(list(enumerate(self.config.groups)))]

    def _size_at(self, mult: int) -> tuple[int, int]:
        stride = mult * self.config.patch_size
        return self.padding.height // stride, self.padding.width // stride

    @property
    def group_shapes(self) -> list[tuple[int, int, int]]:
        """``(C, H, W)`` of each group's latents, top group first."""
        return [
            (self.config.latent_channels, *self._size_at(mult)) for mult, count in self._scales() for _ in range(count)
        ]

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
            "normal": 2 * channels,
        }
        return sizes[self.likelihood_name]

    def likelihood(self, parameters: Tensor) -> Likelihood:
        """p(x | z) from the decoder's output ``[B, P, H, W]``, already cropped."""
        if self.likelihood_name == "bernoulli":
            return Bernoulli(parameters)
        if self.likelihood_name == "normal":
            return Gaussian(normal_from_raw(*parameters.chunk(2, dim=1)))
        return DiscretizedLogisticMixture(
            parameters, self.spec.channels, self.spec.num_bits, self.config.likelihood_edges
        )

    def bottom_up(self, x: Tensor) -> Features:
        """Read images ``[B, C, H, W]`` in [0, 1]; the result can serve any number of top-down passes."""
        expected = (self.spec.channels, self.spec.height, self.spec.width)
        if x.dim() != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"images of shape {tuple(x.shape)} do not fit the model; give [B, {', '.join(map(str, expected))}]"
            )
        folded = F.pixel_unshuffle(2.0 * self.padding.pad(x) - 1.0, self.config.patch_size)
        h = self.stem(folded).contiguous(memory_format=self.layout)
        for cell in self.preprocess:
            h = cell(h)
        recorded = []
        for module in self.encoder:
            if isinstance(module, towers.EncoderCombiner):
                recorded.append(h)
            else:
                h = module(h)
        top = F.elu(self.encoder_top(F.elu(h)))
        return Features((top, *reversed(recorded)))

    def top_down(
        self, decisions: Sequence[Decision], features: Features | None = None, num: int | None = None
    ) -> VAEOutput:
        """Walk the decoder from the top group to the image, taking each group's latents as decided.

        Args:
            decisions: one per group, top group first.
            features: of :meth:`bottom_up`; without them every posterior is its prior.
            num: batch size where there are no features.
        """
        if len(decisions) != len(self.posterior_convs):
            raise ValueError(f"{len(decisions)} decisions for {len(self.posterior_convs)} groups; give one per group")
        combiners = [module for module in self.encoder if isinstance(module, towers.EncoderCombiner)]
        batch = features.groups[0].shape[0] if features is not None else num
        assert batch is not None
        state: Tensor | None = None
        if len(decisions) > 1:
            state = self.initial_state.expand(batch, -1, -1, -1).contiguous(memory_format=self.layout)
        groups: list[Group] = []
        for module in self.decoder:
            if isinstance(module, towers.DecoderCombiner | towers.DecoderStem):
                i = len(groups)
                feature = None if features is None else features.groups[i]
                if feature is not None and i > 0:
                    feature = combiners[-i](feature, state)
                groups.append(self._group(i, state, feature, decisions[i], batch))
                state = module(state, groups[-1].z)
            else:
                state = module(state)
        for cell in self.postprocess:
            state = cell(state)
        assert state is not None
        parameters = F.pixel_shuffle(self.output_conv(F.elu(state)), self.config.patch_size)
        return VAEOutput(self.likelihood(self.padding.crop(parameters)), groups)

    def _group(self, i: int, state: Tensor | None, feature: Tensor | None, decision: Decision, batch: int) -> Group:
        if i == 0:  # raw zeros: mean 0, std 1.01, and nothing that a residual posterior could add to
            channels, height, width = self.group_shapes[0]
            prior_raw = self.output_conv.weight.new_zeros(batch, 2 * channels, height, width)
        else:
            assert state is not None
            prior_raw = self.prior_convs[i - 1](F.elu(state))
        posterior_raw = None if feature is None else self.posterior_convs[i](feature)
        prior, posterior = beliefs(prior_raw, posterior_raw, residual=self.config.residual_posterior)
        drawn = decision.draw(prior, posterior)
        if not decision.from_posterior or self.config.num_flows == 0:
            return Group(drawn, posterior, prior)
        flow, recompute = self.flows[i], self.config.checkpointing and torch.is_grad_enabled()
        return Group(recomputed(flow, drawn) if recompute else flow(drawn), posterior, prior, base=drawn)

    def forward(self, x: Tensor, noise: Sequence[Tensor] | None = None) -> VAEOutput:
        """Beliefs about images ``[B, C, H, W]`` in [0, 1] with latents sampled from their posteriors.

        ``noise``: one standard-normal tensor ``[B, *group_shapes[i]]`` per group, top group first; None draws it.
        """
        return self.from_features(self.bottom_up(x), noise)

    def from_features(self, features: Features, noise: Sequence[Tensor] | None = None) -> VAEOutput:
        """The forward pass after :meth:`bottom_up`, e.g. on ``features.repeat(K)`` for K draws per image."""
        given = self._per_group("noise", noise)
        return self.top_down([PosteriorSample(eps) for eps in given], features)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The likelihood's mean with all latents at their posterior means, ``[B, C, H, W]`` in [0, 1]."""
        return self.top_down([PosteriorMean() for _ in self.group_shapes], self.bottom_up(x)).likelihood.mean

    def encode(self, x: Tensor) -> list[Tensor]:
        """Latents at the posterior means, one per group, each group given the means above it; no sampling.

        With flows these are the means as the flow moves them, that is, what the decoder would see.
        """
        decisions = [PosteriorMean() for _ in self.group_shapes]
        return [group.z for group in self.top_down(decisions, self.bottom_up(x)).groups]

    def decode(self, zs: Sequence[Tensor]) -> Likelihood:
        """p(x | z) for latents ``[B, *group_shapes[i]]`` of all groups, top group first."""
        decisions = [Fixed(z) for z in zs]
        return self.top_down(decisions, num=zs[0].shape[0] if zs else 0).likelihood

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
        """Images from the prior, ``[num, C, H, W]`` in [0, 1].

        Args:
            num: images.
            temperature: factor on every prior's std, the top group's too; one for all or one per group, top first.
            noise: standard-normal ``[num, *group_shapes[i]]`` per group; None draws it.
            pixels: the likelihood's mean, or a draw from it.
            generator: source of all draws.
            pixel_temperature: of the pixel draw; lower means less noise.
        """
        if num < 1 or pixels not in ("mean", "sample"):
            raise ValueError(f"num is {num}, pixels is {pixels!r}; give num of at least 1 and pixels mean or sample")
        num_groups = len(self.posterior_convs)
        temperatures = [temperature] * num_groups if isinstance(temperature, int | float) else list(temperature)
        if len(temperatures) != num_groups:
            raise ValueError(
                f"{len(temperatures)} temperatures for {num_groups} groups; give one number or one per group"
            )
        for value in (*temperatures, pixel_temperature):
            check_temperature(value)
        given = self._per_group("noise", noise)
        decisions = [PriorSample(t, eps, generator) for t, eps in zip(temperatures, given, strict=True)]
        likelihood = self.top_down(decisions, num=num).likelihood
        return likelihood.mean if pixels == "mean" else likelihood.sample(pixel_temperature, generator)

    def _per_group(self, name: str, values: Sequence[Tensor] | None) -> Sequence[Tensor | None]:
        num_groups = len(self.posterior_convs)
        if values is None:
            return [None] * num_groups
        if len(values) != num_groups:
            raise ValueError(f"{name} has {len(values)} tensors for {num_groups} groups; give one per group, top first")
        return values
