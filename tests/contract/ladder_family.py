"""The ladder family and its recipes."""

from __future__ import annotations

from dataclasses import dataclass, field

from launch.console.config import LogConfig, OptimConfig, RunConfig, SharedConfig
from launch.families.family import Family, Preset
from tests.contract.ladder import Ladder, LadderConfig, LadderObjective, ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class LadderTrainConfig(SharedConfig):
    """Train a ladder VAE."""

    model: LadderConfig = field(default_factory=LadderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


def _tiny() -> LadderTrainConfig:
    return LadderTrainConfig(
        preset="tiny",
        optim=OptimConfig(ema_decay=0.9),
        run=RunConfig(max_steps=300, batch_size=16),
        log=LogConfig(log_every=10, eval_images=256),
    )


LADDER_PRESETS = {"tiny": Preset("any data: two groups, 8 channels; two CPU cores, a minute", _tiny)}

FAMILY = Family(
    name="ladder",
    title="ladder VAE",
    config=LadderTrainConfig,
    presets=LADDER_PRESETS,
    build_model=lambda config, spec: Ladder(config.model, spec),
    build_objective=lambda config, model, total_steps, num_images: LadderObjective(config.objective, model),
)
