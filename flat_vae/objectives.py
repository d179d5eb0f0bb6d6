"""The table of objectives. A new objective is a class in a module of its own and a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from flat_vae.adversary import FactorVAE
from flat_vae.autoencoders import Autoencoder, DenoisingAutoencoder
from flat_vae.base import FlatObjective
from flat_vae.beta import BetaVAE, CapacityVAE
from flat_vae.dip import DIPVAE
from flat_vae.grouped import GroupedVAE
from flat_vae.total_correlation import BetaTCVAE


@dataclass(frozen=True)
class Training:
    """Length of a run in optimiser steps, and number of images in the training data."""

    total_steps: int
    num_images: int

    def steps(self, share: float) -> float:
        """A share of the run in optimiser steps."""
        return share * self.total_steps


@dataclass(frozen=True)
class Row:
    """An objective of the table.

    Args:
        formula: the loss in a line, with weights by name as in ``str.format``.
        build: the objective from the model, the :class:`Training` and the weights by name (beta as the factor on the rate in nats).
        defaults: every weight that the objective uses, with the value it takes if none is given: the paper's, or a
            function of the weights before it.
        has_rate: the objective trains the posterior as a distribution; an autoencoder trains only its mean.
        smallest_batch: images that one forward pass needs.
    """

    formula: str
    build: Callable[..., FlatObjective]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    has_rate: bool = True
    smallest_batch: int = 1


def _diagonal_weight(weights: Mapping[str, Any]) -> float:
    """lambda_d as a multiple of lambda_od (Kumar et al. 2017): 10 for DIP-VAE-I, 1 for DIP-VAE-II."""
    return float(weights["lambda_od"]) * (10.0 if weights["dip"] == "i" else 1.0)


OBJECTIVES: Mapping[str, Row] = MappingProxyType(
    {
        "ae": Row("distortion at the posterior mean", lambda model, run: Autoencoder(model), has_rate=False),
        "denoising": Row(
            "distortion at the posterior mean, input corrupted ({corruption}, {corruption_amount:g})",
            lambda model, run, corruption, corruption_amount: DenoisingAutoencoder(
                model, corruption, corruption_amount
            ),
            {"corruption": "zero", "corruption_amount": 0.3},
            has_rate=False,
        ),
        "vae": Row(
            "distortion + rate",
            lambda model, run, beta_warmup: BetaVAE(model, 1.0, run.steps(beta_warmup)),
            {"beta_warmup": 0.0},
        ),
        "beta": Row(
            "distortion + {beta:g} rate",
            lambda model, run, beta, beta_warmup: BetaVAE(model, beta, run.steps(beta_warmup)),
            {"beta": 4.0, "beta_warmup": 0.0},
        ),
        "capacity": Row(
            "distortion + {gamma:g} |rate - C|, C to {capacity:g} nats in {capacity_warmup:g} of the run",
            lambda model, run, gamma, capacity, capacity_warmup: CapacityVAE(
                model, capacity, gamma, run.steps(capacity_warmup)
            ),
            {"gamma": 100.0, "capacity": 25.0, "capacity_warmup": 0.3},
        ),
        "tc": Row(
            "distortion + {alpha:g} I(x;z) + {beta:g} TC + {gamma:g} dimension-wise KL",
            lambda model, run, alpha, beta, gamma, beta_warmup: BetaTCVAE(
                model, run.num_images, alpha, beta, gamma, run.steps(beta_warmup)
            ),
            {"beta": 6.4, "beta_warmup": 0.0, "alpha": 1.0, "gamma": 1.0},
            smallest_batch=2,
        ),
        "factor": Row(
            "distortion + rate + {gamma:g} TC by a discriminator",
            lambda model, run, gamma: FactorVAE(model, gamma),
            {"gamma": 6.4},
        ),
        "dip": Row(
            "distortion + rate + {lambda_od:g} offdiag^2 + {lambda_d:g} (diag - 1)^2 (DIP-VAE-{dip})",
            lambda model, run, dip, lambda_od, lambda_d: DIPVAE(model, dip, lambda_od, lambda_d),
            {"dip": "i", "lambda_od": 10.0, "lambda_d": _diagonal_weight},
        ),
        "grouped": Row(
            "sum over groups of distortion + {beta:g} rate",
            lambda model, run, beta, beta_warmup, latent_groups: GroupedVAE(
                model, latent_groups, beta, run.steps(beta_warmup)
            ),
            {"beta": 1.0, "beta_warmup": 0.0, "latent_groups": None},
        ),
    }
)
