"""A small flat VAE and its images."""

from __future__ import annotations

import pytest
from torch import Tensor

from flat_vae import FlatVAE, FlatVAEConfig
from tests.flat_vae.cases import BINARY, levels


@pytest.fixture
def model() -> FlatVAE:
    return FlatVAE(FlatVAEConfig(latent_dim=4, conv_channels=8), BINARY)


@pytest.fixture
def x() -> Tensor:
    return levels(BINARY, 6)
