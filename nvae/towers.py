"""The four stacks of cells between image and latents, as flat lists in the order of execution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nvae.cells import Cell, Resize
from nvae.config import NVAEConfig
from nvae.convolution import WeightNormConv2d


class EncoderCombiner(nn.Module):
    """Input of a group's posterior: the recorded bottom-up feature plus a 1x1 convolution of the decoder's state."""

    def __init__(self, channels_enc: int, channels_dec: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(channels_dec, channels_enc, 1)

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        """``[B, C_enc, H, W]``, ``[B, C_dec, H, W]`` -> ``[B, C_enc, H, W]``."""
        output: Tensor = feature + self.conv(state)
        return output


class DecoderCombiner(nn.Module):
    """Join a group's latents with the decoder's state by a 1x1 convolution of both."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(channels + latent_channels, channels, 1)

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """``[B, C, H, W]``, ``[B, Z, H, W]`` -> ``[B, C, H, W]``."""
        # otherwise the concatenation would have the layout of neither
        z = z.to(dtype=state.dtype, memory_format=torch.channels_last)
        output: Tensor = self.conv(torch.cat([state, z], dim=1))
        return output


class DecoderStem(nn.Module):
    """Start of the decoder of a model with one group: a 1x1 convolution of its latents alone."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(latent_channels, channels, 1)

    def forward(self, state: Tensor | None, z: Tensor) -> Tensor:
        """``[B, Z, H, W]`` -> ``[B, C, H, W]``; there is no state yet."""
        output: Tensor = self.conv(z)
        return output


def _cell(config: NVAEConfig, ops: tuple[str, ...], width_in: int, width_out: int, resize: Resize = "none") -> Cell:
    return Cell(
        ops, width_in, width_out, resize, squeeze_excite=config.squeeze_excite, checkpointing=config.checkpointing
    )


def preprocess_cells(config: NVAEConfig) -> nn.ModuleList:
    """Cells from the stem to the highest-resolution scale; the last cell of each block halves the resolution."""
    cells, ops = nn.ModuleList(), config.ops.preprocess
    for block in range(config.preprocess_blocks):
        width = config.channels_enc * 2**block
        cells.extend(_cell(config, ops, width, width) for _ in range(config.preprocess_cells - 1))
        cells.append(_cell(config, ops, width, 2 * width, "down"))
    return cells


def encoder_cells(config: NVAEConfig) -> nn.ModuleList:
    """The bottom-up tower, high resolution first: for each group its cells, then a combiner (not for the top group)."""
    modules, ops = nn.ModuleList(), config.ops.encoder
    if sum(config.groups) == 1:
        return modules
    for scale, num_groups in enumerate(config.groups):
        mult = 2 ** (config.preprocess_blocks + scale)
        width, width_dec = config.channels_enc * mult, config.channels_dec * mult
        for group in range(num_groups):
            modules.extend(_cell(config, ops, width, width) for _ in range(config.cells_per_group_enc))
            if not (scale == config.num_scales - 1 and group == num_groups - 1):
                modules.append(EncoderCombiner(width, width_dec))
        if scale < config.num_scales - 1:
            modules.append(_cell(config, ops, width, 2 * width, "down"))
    return modules


def decoder_cells(config: NVAEConfig) -> nn.ModuleList:
    """The top-down tower, low resolution first: for each group its cells (except for the top group), then a combiner."""
    modules, ops = nn.ModuleList(), config.ops.decoder
    if sum(config.groups) == 1:
        width = config.channels_dec * 2**config.preprocess_blocks
        return nn.ModuleList([DecoderStem(width, config.latent_channels)])
    for scale in reversed(range(config.num_scales)):
        width = config.channels_dec * 2 ** (config.preprocess_blocks + scale)
        for group in range(config.groups[scale]):
            if not (scale == config.num_scales - 1 and group == 0):
                modules.extend(_cell(config, ops, width, width) for _ in range(config.cells_per_group_dec))
            modules.append(DecoderCombiner(width, config.latent_channels))
        if scale > 0:
            modules.append(_cell(config, ops, width, width // 2, "up"))
    return modules


def postprocess_cells(config: NVAEConfig) -> nn.ModuleList:
    """Cells from the highest-resolution scale to the size of the image; the first of each block doubles the resolution."""
    cells, ops = nn.ModuleList(), config.ops.postprocess
    for block in reversed(range(config.postprocess_blocks)):
        width = config.channels_dec * 2**block
        cells.append(_cell(config, ops, 2 * width, width, "up"))
        cells.extend(_cell(config, ops, width, width) for _ in range(config.postprocess_cells - 1))
    return cells
