from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from datasets import ImageSpec
from flat_vae import FlatVAE, FlatVAEConfig
from flat_vae.networks import NETWORKS, TAKES

DSPRITES = ImageSpec(channels=1, height=64, width=64, num_bits=1)
FREY = ImageSpec(channels=1, height=28, width=20, num_bits=8)


def counts(model: nn.Module) -> list[int]:
    """Parameters of each layer that has any, in order."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    return [sum(p.numel() for p in layer.parameters()) for layer in layers]


@pytest.mark.parametrize(
    ("config", "spec", "total"),
    [
        (FlatVAEConfig(network="burgess", latent_dim=10), DSPRITES, 502_005),
        (FlatVAEConfig(network="mlp", latent_dim=6), DSPRITES, 14_182_108),
        (FlatVAEConfig(network="frey", latent_dim=2, likelihood="bernoulli"), FREY, 425_189),
    ],
)
def test_parameter_counts_are_those_of_the_papers(config: FlatVAEConfig, spec: ImageSpec, total: int) -> None:
    assert sum(p.numel() for p in FlatVAE(config, spec).parameters()) == total


def test_layers_of_the_frey_network() -> None:
    model = FlatVAE(FlatVAEConfig(network="frey", latent_dim=2, likelihood="bernoulli"), FREY)
    assert counts(model.encoder) == [320, 18_496, 36_928, 36_928, 286_752]
    assert counts(model.mean) == counts(model.log_variance) == [66]
    assert counts(model.decoder) == [26_880, 18_464, 289]


def test_the_conv_network_at_64_is_that_of_the_large_study() -> None:
    model = FlatVAE(FlatVAEConfig(network="conv", latent_dim=10), DSPRITES)
    convs = [m for m in model.encoder if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size, m.stride) for m in convs] == [(n, (4, 4), (2, 2)) for n in (32, 32, 64, 64)]
    ups = [m for m in model.decoder if isinstance(m, nn.ConvTranspose2d)]
    assert [m.out_channels for m in ups] == [64, 32, 32, 1]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (28, 20), (33, 64), (17, 90)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", ["conv", "mlp", "frey"])
def test_networks_follow_the_image_spec(network: str, channels: int, size: tuple[int, int]) -> None:
    spec = ImageSpec(channels=channels, height=size[0], width=size[1], num_bits=8)
    if not TAKES[network][1](spec):
        pytest.skip("refused, see below")
    model = FlatVAE(FlatVAEConfig(network=network, conv_channels=4, num_mixtures=2), spec)  # type: ignore[arg-type]
    x = torch.rand(2, channels, *size)
    assert model(x).likelihood.log_prob(x).shape == (2,)
    assert model.reconstruct(x).shape == x.shape


def test_padding_is_cropped_where_it_was_added() -> None:
    model = FlatVAE(
        FlatVAEConfig(network="conv", conv_channels=4), ImageSpec(channels=1, height=17, width=18, num_bits=1)
    )
    x = torch.zeros(1, 1, 17, 18)
    x[..., 3, 5] = 1.0
    padded = model.encoder[0](x)
    assert padded.shape == (1, 1, 20, 20)
    assert torch.equal(model.decoder[-1](padded), x)


@pytest.mark.parametrize(
    ("network", "size", "named"),
    [("burgess", (28, 20), "mlp or frey or conv"), ("burgess", (9, 9), "mlp or conv"), ("frey", (9, 8), "mlp or conv")],
)
def test_a_network_that_does_not_fit_names_those_that_do(network: str, size: tuple[int, int], named: str) -> None:
    spec = ImageSpec(channels=1, height=size[0], width=size[1], num_bits=1)
    with pytest.raises(ValueError, match=f"network {network} takes .*{size[0]}x{size[1]}; choose network {named}$"):
        FlatVAE(FlatVAEConfig(network=network), spec)  # type: ignore[arg-type]


def test_auto_is_burgess_at_64_and_conv_elsewhere() -> None:
    sizes = {"auto": 0, "burgess": 0, "conv": 0}
    for name in sizes:
        sizes[name] = sum(p.numel() for p in FlatVAE(FlatVAEConfig(network=name), DSPRITES).parameters())  # type: ignore[arg-type]
    assert sizes["auto"] == sizes["burgess"] != sizes["conv"]
    FlatVAE(FlatVAEConfig(), FREY)
    assert set(TAKES) == set(NETWORKS)


def test_glorot_weights_fill_their_range_and_biases_are_zero() -> None:
    model = FlatVAE(FlatVAEConfig(network="frey", init="glorot", likelihood="bernoulli"), FREY)
    dense = model.encoder[9]
    limit = math.sqrt(6.0 / (dense.in_features + dense.out_features))
    assert limit * 0.99 < float(dense.weight.detach().abs().max()) <= limit
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))
