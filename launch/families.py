"""The model families, each with its configuration and builders: the one place that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nvae
from launch.config import SharedConfig
from launch.model import VAE, Objective
from metrics.likelihoods import ImageSpec


@dataclass(frozen=True, kw_only=True)
class NVAETrainConfig(SharedConfig):
    """Train a hierarchical VAE."""

    model: nvae.NVAEConfig = field(default_factory=nvae.NVAEConfig)
    objective: nvae.ObjectiveConfig = field(default_factory=nvae.ObjectiveConfig)


@dataclass(frozen=True)
class Family:
    """A model family: its configuration, and what builds model and objective from it."""

    name: str
    config: type[Any]
    build_model: Callable[[Any, ImageSpec], VAE]
    build_objective: Callable[[Any, Any, int], Objective]


FAMILIES: dict[str, Family] = {
    "nvae": Family(
        "nvae",
        NVAETrainConfig,
        lambda config, spec: nvae.NVAE(config.model, spec),
        lambda config, model, total_steps: nvae.NVAEObjective(config.objective, model, total_steps),
    ),
}


def family_of(config: SharedConfig) -> Family:
    """The family that a configuration belongs to."""
    return next(family for family in FAMILIES.values() if type(config) is family.config)
