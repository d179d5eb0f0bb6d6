"""Flat VAEs: the beta-VAE and its relatives, for images of any size, channels and bits."""

from flat_vae.build import build_objective
from flat_vae.config import FlatVAEConfig
from flat_vae.model import Features, FlatVAE
from flat_vae.objectives import Loss
from flat_vae.replicas import Replicas
from flat_vae.weights import BETA_FORMS, Betas, ObjectiveConfig, betas, describe

__all__ = [
    "BETA_FORMS",
    "Betas",
    "Features",
    "FlatVAE",
    "FlatVAEConfig",
    "Loss",
    "ObjectiveConfig",
    "Replicas",
    "betas",
    "build_objective",
    "describe",
]
