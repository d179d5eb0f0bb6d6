"""A model family: what the rest of launch asks of one, and its recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from launch.console.config import DataConfig
from launch.console.figures import Picture
from launch.console.flags import nearest
from metrics.likelihoods import ImageSpec
from metrics.model import VAE
from metrics.objective import Objective


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
        title: what people call the family; default its name.
        setting: what a configuration adds to title and preset in a report, such as its objective.
    """

    name: str
    config: type[Any]
    build_model: Callable[[Any, ImageSpec], VAE]
    build_objective: Callable[[Any, Any, int, int], Objective]
    describe: Callable[[Any, ImageSpec], list[str]] = lambda config, spec: []
    figures: Callable[[Any, Tensor, int], Mapping[str, Picture]] = lambda model, x, seed: {}
    title: str = ""
    setting: Callable[[Any], str] = lambda config: ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)

    def label(self, config: Any) -> str:
        """Name a configuration: family, preset and what else the family says of it."""
        return ", ".join(filter(None, [f"{self.title} {config.preset}".strip(), self.setting(config)]))


@dataclass(frozen=True)
class Preset:
    """A recipe: what it is for, in a line, and what builds it."""

    summary: str
    build: Callable[[], Any]


def choose(
    presets: dict[str, Preset], name: str | None, dataset: str | None, defaults: dict[str, str], fallback: str
) -> Any:
    """The configuration of preset ``name``, or of the data set's own recipe where no name was typed.

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
