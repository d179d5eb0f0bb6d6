"""The model families, each with its configuration and builders: the one place that names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import flat_vae
import nvae
from launch import latent_figures
from launch.config import OptimConfig, SharedConfig
from launch.figures import Picture
from launch.model import VAE, Objective
from metrics.likelihoods import ImageSpec

PLAIN_ADAM = OptimConfig(
    optimizer="adam",
    lr=5e-4,
    lr_schedule="constant",
    lr_warmup=0.0,
    weight_decay=0.0,
    optimizer_eps=1e-8,
    ema_decay=0.0,
)


@dataclass(frozen=True, kw_only=True)
class NVAETrainConfig(SharedConfig):
    """Train a hierarchical VAE."""

    model: nvae.NVAEConfig = field(default_factory=nvae.NVAEConfig)
    objective: nvae.ObjectiveConfig = field(default_factory=nvae.ObjectiveConfig)


@dataclass(frozen=True, kw_only=True)
class FlatTrainConfig(SharedConfig):
    """Train a flat VAE."""

    optim: OptimConfig = PLAIN_ADAM
    model: flat_vae.FlatVAEConfig = field(default_factory=flat_vae.FlatVAEConfig)
    objective: flat_vae.ObjectiveConfig = field(default_factory=flat_vae.ObjectiveConfig)


@dataclass(frozen=True)
class Family:
    """A model family: its configuration, what builds model and objective from it, and what it alone says and draws.

    Args:
        name: in a run's record.
        config: its TrainConfig.
        build_model: from (config, spec).
        build_objective: from (config, bare model, steps of the run, training images).
        describe: lines about (config, spec), printed before training.
        figures: pictures by name of (model in eval mode, held-out images [N, C, H, W], seed).
    """

    name: str
    config: type[Any]
    build_model: Callable[[Any, ImageSpec], VAE]
    build_objective: Callable[[Any, Any, int, int], Objective]
    describe: Callable[[Any, ImageSpec], list[str]] = lambda config, spec: []
    figures: Callable[[Any, Tensor, int], Mapping[str, Picture]] = lambda model, x, seed: {}


FAMILIES: dict[str, Family] = {
    "nvae": Family(
        "nvae",
        NVAETrainConfig,
        lambda config, spec: nvae.NVAE(config.model, spec),
        lambda config, model, total_steps, num_images: nvae.NVAEObjective(config.objective, model, total_steps),
    ),
    "flat_vae": Family(
        "flat_vae",
        FlatTrainConfig,
        lambda config, spec: flat_vae.FlatVAE(config.model, spec),
        lambda config, model, total_steps, num_images: flat_vae.build_objective(
            config.objective, model, total_steps, num_images
        ),
        lambda config, spec: [f"loss   {flat_vae.describe(config.objective, spec, config.model.latent_dim)}"],
        latent_figures.draw,
    ),
}


def family_of(config: SharedConfig) -> Family:
    """The family that a configuration belongs to."""
    return next(family for family in FAMILIES.values() if type(config) is family.config)
