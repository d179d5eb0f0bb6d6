"""Flat VAEs: the beta-VAE and its relatives, for images of any size, channels and bits."""

from flat_vae.config import FlatVAEConfig
from flat_vae.model import FlatVAE
from flat_vae.objective_config import BETA_FORMS, Betas, ObjectiveConfig, betas, build_objective, describe
from flat_vae.objectives import OBJECTIVES
from flat_vae.replicas import Replicas

__all__ = [
    "BETA_FORMS",
    "OBJECTIVES",
    "Betas",
    "FlatVAE",
    "FlatVAEConfig",
    "ObjectiveConfig",
    "Replicas",
    "betas",
    "build_objective",
    "describe",
]
