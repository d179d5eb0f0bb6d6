"""A model family: everything that the rest of launch needs to know about one, and its recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from launch.console.config import DataConfig, SharedConfig
from launch.console.figures import Picture
from launch.console.flags import nearest, parse, take_switch, typed_value
from metrics.likelihoods import ImageSpec
from metrics.measure import Measure
from metrics.model import VAE
from metrics.objective import Objective

C = TypeVar("C", bound=SharedConfig)
# Flags in the ``--help`` of a training script.
COMMON = (
    *("preset", "dataset", "data_root", "image_size", "run_dir", "resume", "seed"),
    *("max_steps", "epochs", "batch_size", "lr", "device"),
)


@dataclass(frozen=True)
class Preset(Generic[C]):
    """A recipe: its purpose in a line, and the function that builds its configuration."""

    summary: str
    build: Callable[[], C]


@dataclass(frozen=True, kw_only=True)
class Family(Generic[C]):
    """A model family.

    Args:
        name: name in the records of runs, and of the training script: ``launch/train_<name>.py``.
        title: name of the family in legends and sentences.
        config: class of a training run's configuration.
        presets: recipes by name. The first applies to a command line with neither a preset nor a data set.
        preset_of: preset by data set; data sets not listed take preset "small", or the first.
        build_model: model from (configuration, image spec).
        build_objective: objective from (configuration, bare model, steps of the run, number of training images).
        without_conflicts: removes the settings of a preset that contradict the arguments of a command line.
        setting: what a report adds to the family and preset of a configuration, such as its objective.
        describe: lines about (configuration, image spec), printed before training.
        numbers: quantities computed from (configuration, image spec), by name, for the axes of plots.
        measure: kind of numbers that an evaluation of a configuration gives.
        figures: pictures by name from (model in evaluation mode, held-out images [N, C, H, W], seed, start of the titles).
        batch: combines several models and their objectives to be trained as one; None if the family does not offer it.
    """

    name: str
    title: str
    config: type[C]
    presets: Mapping[str, Preset[C]]
    build_model: Callable[[C, ImageSpec], VAE]
    build_objective: Callable[[C, Any, int, int], Objective]
    preset_of: Mapping[str, str] = field(default_factory=dict)
    without_conflicts: Callable[[C, Sequence[str]], C] = lambda config, arguments: config
    setting: Callable[[C], str] = lambda config: ""
    describe: Callable[[C, ImageSpec], list[str]] = lambda config, spec: []
    numbers: Callable[[C, ImageSpec], Mapping[str, float]] = lambda config, spec: {}
    measure: Callable[[C, ImageSpec], Measure] = lambda config, spec: Measure()
    figures: Callable[[Any, Tensor, int, str], Mapping[str, Picture]] = lambda model, x, seed, title: {}
    batch: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None

    def label(self, config: C) -> str:
        """Name of a configuration in legends and tables: family, preset and setting."""
        return ", ".join(filter(None, [f"{self.title} {config.preset}".strip(), self.setting(config)]))

    def preset(self, name: str | None, dataset: str | None = None) -> C:
        """The configuration of preset ``name`` on a data set, or the recipe of the data set if no name is given.

        Raises:
            ValueError: unknown name; the message offers the nearest.
        """
        if name is None:
            first = next(iter(self.presets))
            name = self.preset_of.get(dataset, "small" if "small" in self.presets else first) if dataset else first
        if name not in self.presets:
            raise ValueError(
                f"there is no preset {name!r}{nearest(name, list(self.presets))}; choose one of {', '.join(self.presets)}"
            )
        config = self.presets[name].build()
        if dataset is None or config.data.dataset == dataset:
            return config
        return replace(config, data=DataConfig(dataset=dataset))

    def recipe(self, arguments: Sequence[str]) -> tuple[C, C]:
        """The preset that a command line chooses by --preset or --dataset, and the defaults of its other flags.

        The defaults are the preset without the settings that contradict the typed flags.
        """
        config = self.preset(typed_value("preset", arguments), typed_value("dataset", arguments))
        defaults = self.without_conflicts(config, arguments)
        if typed_value("epochs", arguments) is not None:  # which the preset's number of steps would override
            defaults = replace(defaults, run=replace(defaults.run, max_steps=None))
        return config, defaults

    def parse(
        self, arguments: Sequence[str], description: str, *, kind: type[Any] | None = None, common: Sequence[str] = ()
    ) -> tuple[Any, C, bool]:
        """The configuration that a command line of the family's training script asks for, its preset, and --dry-run.

        Args:
            arguments: the command line.
            description: text of ``--help``, above a line for each preset.
            kind: class of the configuration; default that of a run.
            common: fields that ``--help`` shows besides those of every family.

        Raises:
            ValueError: an unknown flag or preset, or an invalid value.
        """
        dry_run, typed = take_switch("dry-run", arguments)
        preset, defaults = self.recipe(typed)
        width = max(map(len, self.presets)) + 2
        lines = [f"  {name:{width}}{preset.summary}" for name, preset in self.presets.items()]
        more = "Also --dry-run (print what would happen) and --debug (show tracebacks)."
        config = parse(
            kind or self.config,
            defaults if kind is None else kind(**vars(defaults)),
            typed,
            prog=f"train_{self.name}.py",
            description="\n".join([description, "Presets:", *lines, "", more]),
            common=(*COMMON, *common),
        )
        return config, preset, dry_run
