"""A model family: all that the rest of launch needs to know of one, and its recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from launch.console.config import DataConfig, SharedConfig
from launch.console.figures import Picture
from launch.console.flags import nearest
from metrics.likelihoods import ImageSpec
from metrics.model import VAE
from metrics.objective import Objective

C = TypeVar("C", bound=SharedConfig)


@dataclass(frozen=True)
class Preset(Generic[C]):
    """A recipe: its purpose in a line, and the function that builds its configuration."""

    summary: str
    build: Callable[[], C]


@dataclass(frozen=True, kw_only=True)
class Family(Generic[C]):
    """A model family.

    Args:
        name: name in the records of runs, and the training script's: ``launch/train_<name>.py``.
        title: name of the family in legends and sentences.
        config: configuration of a training run.
        presets: recipes by name.
        build_model: model from (configuration, image spec).
        build_objective: objective from (configuration, bare model, steps of the run, number of training images).
        setting: what a configuration adds to family and preset in a report, such as its objective.
        describe: lines about (configuration, image spec), printed before training.
        settings: numbers that follow from (configuration, image spec), by name, to plot results over.
        figures: pictures by name of (model in evaluation mode, held-out images [N, C, H, W], seed).
        batch: several models of (models, objectives) trained as one; None if the family has no such thing.
    """

    name: str
    title: str
    config: type[C]
    presets: Mapping[str, Preset[C]]
    build_model: Callable[[C, ImageSpec], VAE]
    build_objective: Callable[[C, Any, int, int], Objective]
    setting: Callable[[C], str] = lambda config: ""
    describe: Callable[[C, ImageSpec], list[str]] = lambda config, spec: []
    settings: Callable[[C, ImageSpec], Mapping[str, float]] = lambda config, spec: {}
    figures: Callable[[Any, Tensor, int], Mapping[str, Picture]] = lambda model, x, seed: {}
    batch: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None

    def label(self, config: C) -> str:
        """Name of a configuration in legends and tables: family, preset and setting."""
        return ", ".join(filter(None, [f"{self.title} {config.preset}".strip(), self.setting(config)]))


def choose(
    presets: Mapping[str, Preset[C]], name: str | None, dataset: str | None, defaults: Mapping[str, str], fallback: str
) -> C:
    """The configuration of preset ``name``, or the recipe of a data set if no name was given.

    Raises:
        ValueError: unknown name; the nearest is offered.
    """
    if name is None:
        name = defaults.get(dataset, fallback) if dataset else next(iter(presets))
    if name not in presets:
        raise ValueError(
            f"there is no preset {name!r}{nearest(name, list(presets))}; choose one of {', '.join(presets)}"
        )
    config = presets[name].build()
    if dataset is None or config.data.dataset == dataset:
        return config
    return replace(config, data=DataConfig(dataset=dataset))
