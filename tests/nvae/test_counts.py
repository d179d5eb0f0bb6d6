"""The six published models have the published numbers of parameters, tensors, convolutions and batch norms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nvae import NVAE, NVAEConfig
from nvae.batch_norm import batch_norms


@dataclass(frozen=True)
class Images:
    channels: int
    height: int
    width: int
    num_bits: int


def mnist() -> tuple[NVAEConfig, Images]:
    config = NVAEConfig(
        channels_enc=32,
        channels_dec=32,
        num_scales=2,
        num_groups=10,
        preprocess_blocks=2,
        preprocess_cells=3,
        postprocess_blocks=2,
        postprocess_cells=3,
        padded_size=(32, 32),
    )
    return config, Images(1, 28, 28, 1)


def one_scale(channels: int, num_groups: int) -> tuple[NVAEConfig, Images]:
    config = NVAEConfig(channels_enc=channels, channels_dec=channels, num_scales=1, num_groups=num_groups, num_flows=1)
    return config, Images(3, 32, 32, 8)


def celeba() -> tuple[NVAEConfig, Images]:
    return NVAEConfig(num_scales=3, num_groups=20, num_flows=1), Images(3, 64, 64, 8)


def high_resolution() -> tuple[NVAEConfig, Images]:
    config = NVAEConfig(channels_enc=30, channels_dec=30, num_scales=5, num_groups=16, min_groups=4, num_flows=2)
    return config, Images(3, 256, 256, 5)


# millions of parameters, parameter tensors, convolutions, batch norms, latent dimensions
COUNTS = {
    "mnist": (mnist(), 33.36, 1269, 255, 214, 14_400),
    "cifar10": (one_scale(128, 30), 130.85, 2566, 610, 364, 153_600),
    "celeba64": (celeba(), 153.28, 3072, 730, 436, 467_200),
    "imagenet32": (one_scale(192, 28), 268.51, 2398, 570, 340, 143_360),
    "celebahq256_ffhq256": (high_resolution(), 330.80, 3746, 986, 460, 6_005_760),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name: str) -> None:
    (config, images), millions, tensors, convolutions, norms, latents = COUNTS[name]
    with torch.device("meta"):
        model = NVAE(config, images)
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) / 1e6 == pytest.approx(millions, abs=0.005)
    assert len(parameters) == tensors
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    assert len(batch_norms(model)) == norms
    assert sum(c * h * w for c, h, w in model.group_shapes) == latents


def test_groups_halve_towards_coarse_scales() -> None:
    assert mnist()[0].groups == (10, 5)
    assert celeba()[0].groups == (20, 10, 5)
    assert high_resolution()[0].groups == (16, 8, 4, 4, 4)
    assert NVAEConfig(num_scales=3, num_groups=7).groups == (7, 3, 1)
    assert NVAEConfig(num_scales=3, num_groups=7, adaptive_groups=False).groups == (7, 7, 7)
