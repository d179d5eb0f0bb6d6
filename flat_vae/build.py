"""From weights to an objective: the one place that knows all of them."""

from __future__ import annotations

from typing import Any

from flat_vae.adversary import FactorVAE
from flat_vae.model import FlatVAE
from flat_vae.objectives import (
    DIPVAE,
    Autoencoder,
    BetaVAE,
    CapacityVAE,
    DenoisingAutoencoder,
    FlatObjective,
    GroupedVAE,
)
from flat_vae.total_correlation import BetaTCVAE
from flat_vae.weights import ObjectiveConfig, betas


def build_objective(config: ObjectiveConfig, model: FlatVAE, total_steps: int, num_images: int) -> FlatObjective:
    """The objective that ``config`` names.

    Args:
        config: its name and weights; what is not typed has the paper's value.
        model: the bare model.
        total_steps: optimiser steps of the whole run, which the schedules fit themselves into.
        num_images: images in the training data (the estimator of tc wants it).
    """
    weights: Any = config.resolved()
    beta = betas(config, model.spec, model.config.latent_dim).beta
    beta_steps = (weights.beta_warmup or 0.0) * total_steps
    match weights.objective:
        case "ae":
            return Autoencoder(model)
        case "denoising":
            return DenoisingAutoencoder(model, weights.corruption, weights.corruption_amount)
        case "vae" | "beta":
            return BetaVAE(model, beta, beta_steps)
        case "capacity":
            return CapacityVAE(model, weights.capacity, weights.gamma, weights.capacity_warmup * total_steps)
        case "tc":
            return BetaTCVAE(model, num_images, weights.alpha, beta, weights.gamma, beta_steps)
        case "factor":
            return FactorVAE(model, weights.gamma)
        case "dip":
            return DIPVAE(model, weights.dip, weights.lambda_od, weights.lambda_d)
        case _:
            return GroupedVAE(model, weights.latent_groups, beta, beta_steps)
