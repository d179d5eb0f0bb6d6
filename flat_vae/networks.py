"""Encoders and decoders: the conv net of Burgess et al., two networks of earlier studies, and a conv net for images of any size.

A network is a pair of plain stacks of layers. The encoder maps images to features [B, F], from which the model computes
mean and log-variance. The decoder maps latents [B, D] to the likelihood's parameters [B, P, H, W]. A ReLU follows every
layer but the last. It works in place, which is safe because no layer's backward pass reads its own output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from flat_vae.config import FlatVAEConfig, Initialisation
from flat_vae.upsampling import upsampling
from metrics.likelihoods import ImageSpec

SMALLEST_SIDE = 4  # approximate length to which the conv net halves the image's shorter side


@dataclass(frozen=True)
class Network:
    """An encoder [B, C, H, W] -> [B, num_features] and a decoder [B, D] -> [B, P, H, W]."""

    encoder: nn.Module
    num_features: int
    decoder: nn.Module


def _burgess(config: FlatVAEConfig, spec: ImageSpec, num_parameters: int) -> Network:
    """Burgess et al. 2018, for 64x64: four convs of 32 filters 4x4 stride 2, two dense layers of 256, mirrored."""
    widths = [spec.channels, 32, 32, 32, 32]
    downs: list[nn.Module] = []
    ups: list[nn.Module] = []
    for before, after in pairwise(widths):
        downs += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    for _ in range(3):
        ups += [upsampling(32, 32), nn.ReLU(inplace=True)]
    ups.append(upsampling(32, num_parameters))
    dense_in = [nn.Flatten(), nn.Linear(512, 256), nn.ReLU(inplace=True), nn.Linear(256, 256), nn.ReLU(inplace=True)]
    dense_out = [
        nn.Linear(config.latent_dim, 256),
        nn.ReLU(inplace=True),
        nn.Linear(256, 256),
        nn.ReLU(inplace=True),
        nn.Linear(256, 512),
        nn.ReLU(inplace=True),
    ]
    return Network(nn.Sequential(*downs, *dense_in), 256, nn.Sequential(*dense_out, nn.Unflatten(1, (32, 4, 4)), *ups))


def _mlp(config: FlatVAEConfig, spec: ImageSpec, num_parameters: int) -> Network:
    """MLP of the Grouped-VAE report, any size: encoder 2 x 1200 ReLU, decoder 3 x 1200 tanh (Higgins et al. 2017)."""
    num_inputs, num_outputs = (channels * spec.height * spec.width for channels in (spec.channels, num_parameters))
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(num_inputs, 1200), nn.ReLU(inplace=True), nn.Linear(1200, 1200), nn.ReLU(inplace=True)
    )
    hidden: list[nn.Module] = []
    for width in (config.latent_dim, 1200, 1200):
        hidden += [nn.Linear(width, 1200), nn.Tanh()]
    shape = (num_parameters, spec.height, spec.width)
    return Network(encoder, 1200, nn.Sequential(*hidden, nn.Linear(1200, num_outputs), nn.Unflatten(1, shape)))


def _frey(config: FlatVAEConfig, spec: ImageSpec, num_parameters: int) -> Network:
    """Conv net of a thesis on Frey Faces (28x20), for even sides: four 3x3 convs, one with stride 2, and a dense 32."""
    bottom = (64, spec.height // 2, spec.width // 2)
    flat = math.prod(bottom)
    encoder = nn.Sequential(
        *(nn.Conv2d(spec.channels, 32, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(flat, 32), nn.ReLU(inplace=True)),
    )
    decoder = nn.Sequential(
        *(nn.Linear(config.latent_dim, flat), nn.ReLU(inplace=True), nn.Unflatten(1, bottom)),
        *(nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1), nn.ReLU(inplace=True)),
        nn.Conv2d(32, num_parameters, 3, padding=1),
    )
    return Network(encoder, 32, decoder)


class _Pad(nn.Module):
    """Zero-pad images to ``height`` x ``width``, an odd pixel at the bottom or right."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, height, width]."""
        down, right = self.height - x.shape[2], self.width - x.shape[3]
        return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))


class _Crop(nn.Module):
    """Remove the padding."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, height, width]."""
        top, left = (x.shape[2] - self.height) // 2, (x.shape[3] - self.width) // 2
        return x[:, :, top : top + self.height, left : left + self.width]


def _conv(config: FlatVAEConfig, spec: ImageSpec, num_parameters: int) -> Network:
    """Conv net for images of any size: 4x4 stride-2 convs down to about 4x4, a dense 256, mirrored.

    Filters 32, 32, 64, 64, 128, ... with the default ``conv_channels``: at 64x64 the network of Locatello et al. 2019.
    If the sides are not multiples of the total stride, images are zero-padded and the output is cropped.
    """
    depth = max(1, int(math.log2(max(min(spec.height, spec.width) / SMALLEST_SIDE, 1.0))))
    rows, columns = (math.ceil(side / 2**depth) for side in (spec.height, spec.width))
    widths = [spec.channels, *(config.conv_channels * 2 ** (i // 2) for i in range(depth))]
    downs: list[nn.Module] = []
    ups: list[nn.Module] = []
    for before, after in pairwise(widths):
        downs += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    for before, after in zip(widths[:0:-1], [*widths[-2:0:-1], num_parameters], strict=True):
        ups += [upsampling(before, after), nn.ReLU(inplace=True)]
    bottom = (widths[-1], rows, columns)
    flat = math.prod(bottom)
    encoder = nn.Sequential(
        _Pad(rows * 2**depth, columns * 2**depth), *downs, nn.Flatten(), nn.Linear(flat, 256), nn.ReLU(inplace=True)
    )
    dense = [
        nn.Linear(config.latent_dim, 256),
        nn.ReLU(inplace=True),
        nn.Linear(256, flat),
        nn.ReLU(inplace=True),
        nn.Unflatten(1, bottom),
    ]
    return Network(encoder, 256, nn.Sequential(*dense, *ups[:-1], _Crop(spec.height, spec.width)))


NETWORKS: dict[str, Callable[[FlatVAEConfig, ImageSpec, int], Network]] = {
    "burgess": _burgess,
    "mlp": _mlp,
    "frey": _frey,
    "conv": _conv,
}
TAKES: dict[str, tuple[str, Callable[[ImageSpec], bool]]] = {
    "burgess": ("64x64 images", lambda spec: (spec.height, spec.width) == (64, 64)),
    "mlp": ("any image", lambda spec: True),
    "frey": ("images of even height and width", lambda spec: spec.height % 2 == 0 and spec.width % 2 == 0),
    "conv": ("any image", lambda spec: True),
}


def build(config: FlatVAEConfig, spec: ImageSpec, num_parameters: int) -> Network:
    """Network that a configuration describes.

    Args:
        config: name, latents, widths.
        spec: channels, height and width of the images.
        num_parameters: P, number of output channels, see :class:`metrics.pixel_head.PixelHead`.

    Raises:
        ValueError: the network does not accept images of this size; the message names those that do.
    """
    name = config.network
    if name == "auto":
        name = "burgess" if (spec.height, spec.width) == (64, 64) else "conv"
    takes, fits = TAKES[name]
    if not fits(spec):
        fitting = " or ".join(other for other, (_, also_fits) in TAKES.items() if also_fits(spec))
        raise ValueError(
            f"network {name} takes {takes}, these are {spec.height}x{spec.width}; choose network {fitting}"
        )
    return NETWORKS[name](config, spec, num_parameters)


def initialise(module: nn.Module, init: Initialisation) -> None:
    """Reinitialise the weights of every layer and set biases to zero; "torch" keeps PyTorch's initial values."""
    assert init != "auto", "the model resolves auto"
    if init == "torch":
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            if init == "he":
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
