"""Architecture of an NVAE, as a frozen value for JSON records and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

from metrics.likelihoods import Edges
from metrics.pixel_head import LikelihoodName

CellArch = Literal[
    "res_mbconv",
    "res_bnswish",
    "res_bnelu",
    "res_elu",
    "mbconv_res",
    "mbconv_sep",
    "mbconv_sep11",
    "mbconv_den",
    "res35_mbconv",
    "res53_mbconv",
    "res55_mbconv",
]


_MOST_SCALES, _MOST_PARTS, _MOST_CHANNELS = 16, 1024, 65_536


@dataclass(frozen=True)
class CellOps:
    """The operations, in order, that make up a cell in each part of the model.

    Names: ``res_bnswish``, ``res_bnswish5`` (dilated), ``res_bnelu``, ``res_elu``, or an inverted residual
    ``mconv_e<expansion>k<kernel>g<groups>`` (g0: depthwise).
    """

    preprocess: tuple[str, ...]
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    postprocess: tuple[str, ...]


def _everywhere(primitive: str) -> CellOps:
    pair = (primitive, primitive)
    return CellOps(pair, pair, pair, pair)


def _inverted(primitive_pre_post: str, primitive_towers: str) -> CellOps:
    outside, inside = (primitive_pre_post,), (primitive_towers,)
    return CellOps(outside, inside, inside, outside)


def _res_mbconv(*residual: str) -> CellOps:
    return CellOps(residual, residual, ("mconv_e6k5g0",), ("mconv_e3k5g0",))


_SWISH, _SWISH5 = "res_bnswish", "res_bnswish5"
CELL_OPS: Mapping[str, CellOps] = MappingProxyType(
    {
        "res_mbconv": _res_mbconv(_SWISH, _SWISH),
        "res_bnswish": _everywhere(_SWISH),
        "res_bnelu": _everywhere("res_bnelu"),
        "res_elu": _everywhere("res_elu"),
        "mbconv_res": CellOps(("mconv_e3k5g0",), ("mconv_e6k5g0",), (_SWISH, _SWISH), (_SWISH, _SWISH)),
        "mbconv_sep": _inverted("mconv_e3k5g0", "mconv_e6k5g0"),
        "mbconv_sep11": _inverted("mconv_e3k5g0", "mconv_e6k11g0"),
        "mbconv_den": _inverted("mconv_e3k5g8", "mconv_e6k5g0"),
        "res35_mbconv": _res_mbconv(_SWISH, _SWISH5),
        "res53_mbconv": _res_mbconv(_SWISH5, _SWISH),
        "res55_mbconv": _res_mbconv(_SWISH5, _SWISH5),
    }
)


@dataclass(frozen=True, kw_only=True)
class NVAEConfig:
    """Architecture of an NVAE (for the published ones see Vahdat & Kautz 2020, table 6 and section 8 of the appendix).

    Channels, size and bits of the images come from the data's ``ImageSpec`` instead.
    """

    num_scales: int = 3
    """Resolutions that hold latents; each halves the one before."""
    num_groups: int = 20
    """Latent groups of the highest-resolution scale; of every scale if not adaptive_groups."""
    adaptive_groups: bool = True
    """Each coarser scale has half the groups of the finer one, at least min_groups."""
    min_groups: int = 1
    """Fewest groups of a scale, if adaptive_groups."""
    groups_per_scale: tuple[int, ...] = ()
    """Groups of each scale, highest resolution first; overrides the three fields above. Empty: use them."""
    latent_channels: int = 20
    """Latent channels of a group."""
    channels_enc: int = 64
    """Encoder channels at full resolution; doubled with every halving."""
    channels_dec: int = 64
    """Decoder channels at full resolution; doubled with every halving."""
    patch_size: int = 1
    """Side in pixels of the squares that are folded into channels before the stem and unfolded at the output. The
    published model has 1; 4 avoids cells at full resolution, the slowest part on a CPU."""
    preprocess_blocks: int = 1
    """Number of times that the resolution is halved between the (folded) image and the first scale with latents."""
    preprocess_cells: int = 2
    """Cells of a pre-processing block; the last one halves the resolution."""
    postprocess_blocks: int = 1
    """Doublings after the last scale; must equal preprocess_blocks."""
    postprocess_cells: int = 2
    """Cells of a post-processing block; the first one doubles the resolution."""
    cells_per_group_enc: int = 2
    """Encoder cells before each group."""
    cells_per_group_dec: int = 2
    """Decoder cells before each group but the top one."""
    num_mixtures: int = 10
    """Components of the mixture of discretised logistics."""
    num_flows: int = 0
    """Pairs of autoregressive volume-preserving flow cells after each posterior (0: Gaussian posteriors)."""
    cell_arch: CellArch = "res_mbconv"
    """Published name of the cells. res_mbconv: 3x3 residuals bottom-up, depthwise 5x5 inverted residuals top-down."""
    preprocess_ops: tuple[str, ...] = ()
    """Operations of a pre-processing cell. Empty: those of cell_arch."""
    encoder_ops: tuple[str, ...] = ()
    """Operations of an encoder cell. Empty: those of cell_arch."""
    decoder_ops: tuple[str, ...] = ()
    """Operations of a decoder cell. Empty: those of cell_arch."""
    postprocess_ops: tuple[str, ...] = ()
    """Operations of a post-processing cell. Empty: those of cell_arch."""
    squeeze_excite: bool = True
    """Squeeze-and-excitation at the end of every cell."""
    residual_posterior: bool = True
    """Posteriors are parameterised relative to the prior (paper, section 3.2)."""
    likelihood: LikelihoodName = "auto"
    """p(x | z). auto: Bernoulli for 1-bit images, else the mixture of discretised logistics; logistic: one of them, with
    independent channels."""
    likelihood_edges: Edges = "exact"
    """exact: bins are probabilities. legacy: the published rule, whose 8-bit results are slightly optimistic."""
    padded_size: tuple[int, int] | None = None
    """Height and width in pixels that images are zero-padded to. None: the next multiples of the stride."""
    checkpointing: bool = False
    """Recompute each cell in the backward pass: about a tenth of the activation memory for a third more time."""

    def __post_init__(self) -> None:
        """Refuse contradictions, and turn the lists of JSON into tuples."""
        for field in fields(self):
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        _check_range(self, 1, _MOST_SCALES, "num_scales")
        _check_range(self, 1, _MOST_PARTS, "num_groups", "min_groups", "preprocess_cells", "postprocess_cells")
        _check_range(self, 1, _MOST_PARTS, "cells_per_group_enc", "cells_per_group_dec", "patch_size")
        _check_range(self, 0, _MOST_SCALES, "preprocess_blocks", "postprocess_blocks")
        _check_range(self, 0, _MOST_PARTS, "num_flows")
        _check_range(self, 1, _MOST_CHANNELS, "latent_channels", "num_mixtures")
        _check_range(self, 2, _MOST_CHANNELS, "channels_enc", "channels_dec")  # a resizing skip halves them
        if self.preprocess_blocks != self.postprocess_blocks:
            raise ValueError(
                f"preprocess_blocks is {self.preprocess_blocks} but postprocess_blocks is {self.postprocess_blocks}: "
                "the image would change its size; make them equal"
            )
        if self.groups_per_scale and (len(self.groups_per_scale) != self.num_scales or min(self.groups_per_scale) < 1):
            raise ValueError(
                f"groups_per_scale {self.groups_per_scale} does not fit num_scales {self.num_scales}; "
                "give one positive number per scale, highest resolution first"
            )
        choices(self, "cell_arch", tuple(CELL_OPS))
        choices(self, "likelihood", get_args(LikelihoodName))
        choices(self, "likelihood_edges", ("exact", "legacy"))

    @property
    def groups(self) -> tuple[int, ...]:
        """Groups of each scale, highest resolution first."""
        if self.groups_per_scale:
            return self.groups_per_scale
        counts = [self.num_groups]
        for _ in range(self.num_scales - 1):
            counts.append(max(self.min_groups, counts[-1] // 2) if self.adaptive_groups else self.num_groups)
        return tuple(counts)

    @property
    def ops(self) -> CellOps:
        """Operations of the cells of each part."""
        published = CELL_OPS[self.cell_arch]
        return CellOps(
            preprocess=self.preprocess_ops or published.preprocess,
            encoder=self.encoder_ops or published.encoder,
            decoder=self.decoder_ops or published.decoder,
            postprocess=self.postprocess_ops or published.postprocess,
        )

    @property
    def stride(self) -> int:
        """Side in pixels of the square of the image that belongs to one position of the top group."""
        return self.patch_size * self.top_multiplier

    @property
    def top_multiplier(self) -> int:
        """Ratio of the top scale's channels to channels_enc or channels_dec; it doubles with every halving."""
        return int(2 ** (self.preprocess_blocks + self.num_scales - 1))


def choices(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse a field of ``config`` with a value that is not allowed."""
    if getattr(config, name) not in allowed:
        raise ValueError(f"{name} is {getattr(config, name)!r}; choose one of {', '.join(allowed)}")


def _check_range(config: Any, least: int, most: int, *names: str) -> None:
    """Refuse sizes beyond any real model, so that a damaged record cannot exhaust the memory."""
    for name in names:
        value = getattr(config, name)
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}; give {f'{least} or more' if value < least else f'at most {most:,}'}")
