"""NVAE: a bottom-up pass over the image, and one top-down pass for every use of the latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.decisions import Decision
from metrics.elbo import Group, VAEOutput
from metrics.likelihoods import ImageSpec
from metrics.model import VAE, Features
from metrics.pixel_head import PixelHead
from nvae import towers
from nvae.batch_norm import reestimate_batch_norm, write_statistics
from nvae.cells import Cell, compile_cells, recomputed
from nvae.config import NVAEConfig
from nvae.convolution import WeightNormConv2d
from nvae.flows import FlowPair
from nvae.padding import Padding
from nvae.posterior import normal_from_raw, prior_and_posterior

LAYOUT = torch.channels_last  # of weights and activations: convolutions, above all depthwise ones, are fastest in it


class NVAE(VAE):
    """Deep hierarchical VAE (Vahdat & Kautz 2020).

    Images may have any number of channels, any size and any bit depth. They are zero-padded evenly to a multiple of
    ``config.stride`` (an odd pixel goes to the bottom or the right), and the likelihood's parameters are cropped back.

    Args:
        config: the architecture.
        spec: channels, height, width and num_bits of the images.

    Raises:
        ValueError: the images are smaller than the stride.
    """

    def __init__(self, config: NVAEConfig, spec: ImageSpec) -> None:
        super().__init__(spec)
        self.config = config
        self.pixel_head = PixelHead(
            spec=spec,
            likelihood=config.likelihood,
            num_mixtures=config.num_mixtures,
            edges=config.likelihood_edges,
            raw_normal=normal_from_raw,
        )
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
        self.output_conv = WeightNormConv2d(config.channels_dec, self.pixel_head.num_parameters * patch_area, 3)
        self.is_compiled = False
        self.layout = LAYOUT
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            if conv.kernel_size != (1, 1) and conv.groups == 1:  # for all others the two layouts are the same in memory
                conv.to(memory_format=self.layout)

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile the cells in place (see :func:`nvae.cells.compile_cells`); for training, with one batch size."""
        self.is_compiled = True
        compile_cells([module for module in self.modules() if isinstance(module, Cell)], backend)

    def _scales(self) -> list[tuple[int, int]]:
        """Pairs (multiplier of the channels, number of groups) of all scales, lowest resolution first."""
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

    def bottom_up(self, x: Tensor) -> Features:
        """Features ``[B, C_enc, H, W]`` of each group, top group first, from images ``[B, C, H, W]`` in [0, 1]."""
        self.check_images(x)
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
        """Pass from the top group to the image, see :meth:`metrics.model.VAE.top_down`."""
        groups, state = self._walk(decisions, features, num)
        for cell in self.postprocess:
            state = cell(state)
        parameters = F.pixel_shuffle(self.output_conv(F.elu(state)), self.config.patch_size)
        return VAEOutput(self.pixel_head(self.padding.crop(parameters)), groups)

    def descend(
        self, decisions: Sequence[Decision], features: Features | None = None, num: int | None = None
    ) -> list[Group]:
        """Groups of :meth:`top_down`, without the cells after the last group."""
        return self._walk(decisions, features, num)[0]

    def _walk(
        self, decisions: Sequence[Decision], features: Features | None, num: int | None
    ) -> tuple[list[Group], Tensor]:
        """All groups, and the decoder's state after the last of them."""
        batch = self.check_decisions(decisions, features, num)
        combiners = [module for module in self.encoder if isinstance(module, towers.EncoderCombiner)]
        state: Tensor | None = None
        if len(decisions) > 1:
            state = self.initial_state.expand(batch, -1, -1, -1).contiguous(memory_format=self.layout)
        groups: list[Group] = []
        for module in self.decoder:
            if isinstance(module, towers.DecoderCombiner | towers.DecoderStem):
                i = len(groups)
                feature = None if features is None else features.tensors[i]
                if feature is not None and i > 0:
                    feature = combiners[-i](feature, state)
                groups.append(self._group(i, state, feature, decisions[i], batch))
                state = module(state, groups[-1].z)
            else:
                state = module(state)
        assert state is not None
        return groups, state

    def _group(self, i: int, state: Tensor | None, feature: Tensor | None, decision: Decision, batch: int) -> Group:
        if i == 0:  # raw zeros give mean 0 and std 1.01, and leave a residual posterior as it is
            channels, height, width = self.group_shapes[0]
            prior_raw = self.output_conv.weight.new_zeros(batch, 2 * channels, height, width)
        else:
            assert state is not None
            prior_raw = self.prior_convs[i - 1](F.elu(state))
        posterior_raw = None if feature is None else self.posterior_convs[i](feature)
        prior, posterior = prior_and_posterior(prior_raw, posterior_raw, residual=self.config.residual_posterior)
        drawn = decision.draw(prior, posterior)
        if not decision.from_posterior or self.config.num_flows == 0:
            return Group(drawn, posterior, prior)
        flow, recompute = self.flows[i], self.config.checkpointing and torch.is_grad_enabled()
        return Group(recomputed(flow, drawn) if recompute else flow(drawn), posterior, prior, base=drawn)

    @torch.no_grad()
    def readjust_batch_norm(
        self,
        num_batches: int,
        batch_size: int,
        temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Re-estimate batch-norm statistics (paper, section 4), see :meth:`metrics.model.VAE.readjust_batch_norm`."""
        statistics = reestimate_batch_norm(
            self, lambda i: self.sample(batch_size, temperature, generator=generator), num_batches
        )
        bad = [name for name, values in statistics.items() if not torch.isfinite(values).all()]
        if bad:
            raise FloatingPointError(f"re-estimated statistics are not finite (e.g. {bad[0]}); check the checkpoint")
        write_statistics(self, statistics)
