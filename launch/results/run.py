"""A trained run, opened from its folder: configuration, data, and the model with its trained weights."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

import datasets
from datasets import recipes
from launch.console.config import SharedConfig, from_json
from launch.console.terminal import say
from launch.families import FAMILIES
from launch.families.family import Family
from launch.machine import execution, noise
from launch.training import checkpoint
from launch.training.checkpoint import check_weights, load_state
from launch.training.folder import RunFolder
from metrics.model import VAE

Images: TypeAlias = Tensor | np.ndarray[Any, Any]
Weights: TypeAlias = Literal["auto", "raw"]
FORMAT = 1  # newest format of config.json that this version reads
AT_ONCE = 64  # images in one pass through the model


@dataclass(frozen=True)
class SavedRun:
    """A finished or interrupted run, whose weights are read on first use.

    Args:
        folder: the run folder.
        record: content of config.json.
        family: the model family that the run belongs to.
        config: configuration that the run was trained with.
        spec: shape and bit depth of the images that the model takes.
        device, weights, data_root, other_data: as for :func:`open_run`.
        asked_checkpoint: checkpoint to load; None takes the newest valid one.
    """

    folder: Path
    record: dict[str, Any]
    family: Family[Any]
    config: SharedConfig
    spec: datasets.ImageSpec
    device: torch.device
    weights: Weights
    data_root: Path | None
    other_data: bool
    asked_checkpoint: Path | None

    @property
    def files(self) -> RunFolder:
        """The folder as the trainer sees it, with its records and checkpoints."""
        return RunFolder(self.folder)

    @cached_property
    def _loaded(self) -> tuple[VAE, int, Path]:
        """Model, optimiser step and checkpoint; the rest of the checkpoint is not kept in memory."""
        if self.asked_checkpoint is not None:
            path, content = self.asked_checkpoint, checkpoint.load(self.asked_checkpoint)
        else:
            path, content = self._newest()
        averaged = self.weights == "auto" and content.get("ema") is not None
        weights = content.get("ema") if averaged else content.get("model")
        with torch.device("meta"):  # no memory: a configuration that is not of these weights may ask for any amount
            shapes = self.new_model()
        check_weights(shapes.state_dict(), weights, str(path))
        model = self.new_model()
        load_state(model, weights, str(path))
        module = model.to(self.device).eval().requires_grad_(False)
        return module, int(content["step"]), path

    def _newest(self) -> tuple[Path, dict[str, Any]]:
        valid = checkpoint.newest_valid(self.files.checkpoints, _warn)
        found = next(valid, None)
        if found is None:
            raise ValueError(f"{self.folder} has no valid checkpoint yet; train it first")
        return found

    @property
    def model(self) -> VAE:
        """The trained model in evaluation mode, without gradients, on ``device``.

        Raises:
            ValueError: no checkpoint is valid, or it does not fit the model (the message names the keys).
        """
        return self._loaded[0]

    @property
    def step(self) -> int:
        """Optimiser steps that the weights were trained for."""
        return self._loaded[1]

    @property
    def title(self) -> str:
        """Model, data set and step in words: the first part of every picture's title."""
        return f"{self.family.label(self.config)} on {self.config.data.dataset}, step {self.step:,}"

    @property
    def checkpoint(self) -> Path:
        """File that the weights come from."""
        return self._loaded[2]

    def new_model(self) -> VAE:
        """Build the model of this run with newly initialised weights."""
        return self.family.build_model(self.config, self.spec)

    def data(self, split: str = "test") -> datasets.Dataset:
        """Open a split of the data set that the run was trained on: train, valid, test, or all if it exists.

        Images of a folder are cropped and resized to the size of the run. The present training images are compared with
        the recorded ones, because a split made from other images may contain some that the run was trained on.

        Raises:
            ValueError: the data are missing, differ from those that the run was trained on (the message names the
                differences, and ``other_data`` is off), or have images that the model does not take.
        """
        recorded = self.files.recipe
        try:
            train = self._open("train")
        except datasets.NoSuchSplit:
            train = None
        changed: list[str] = []
        if recorded:  # imported weights have no record of their data
            missing = ["the training images are missing"]
            changed = missing if train is None else recipes.differences(recorded, train.recipe)
        if changed and not self.other_data:
            raise ValueError(
                f"the data differ from those that {self.folder} was trained on ({', '.join(changed)}), so images of split "
                f"{split} may have been trained on; restore the data, name their folder (--data-root), or add --other-data "
                "to use them anyway"
            )
        if changed:
            _warn(f"the data differ from those that the run was trained on: {', '.join(changed)}")
        data = train if split == "train" and train is not None else self._open(split)
        if data.spec != self.spec:
            raise ValueError(
                f"the run was trained on {_describe(self.spec)}, {data.name} now has {_describe(data.spec)}; "
                "give the folder of the data that it was trained on with --data-root"
            )
        return data

    def _open(self, split: str) -> datasets.Dataset:
        """Open a split as it is stored, or images of a folder in the run's shape if they have another one.

        Mirroring belongs to training: factors, and files made from the images, are of the stored ones.
        """
        config = replace(self.config.data, hflip=False)
        config = config if self.data_root is None else replace(config, data_root=self.data_root)
        opened = partial(config.open, split, seed=self.config.run.seed, recorded=self.files.recipe or {})
        try:
            data = opened()
            if data.spec == self.spec or config.dataset != "folder":
                return data
        except datasets.NoSuchSplit:
            raise
        except datasets.DataError:
            if config.dataset != "folder" or config.image_size is not None:
                raise
        return opened(spec=self.spec)

    def _floats(self, images: Images) -> Tensor:
        """Check images [N, C, H, W] and convert them to floats in [0, 1]."""
        x, spec = torch.as_tensor(images), self.spec
        if x.ndim != 4 or tuple(x.shape[1:]) != (spec.channels, spec.height, spec.width):
            raise ValueError(
                f"images have the shape {tuple(x.shape)}; give [N, {spec.channels}, {spec.height}, {spec.width}]"
            )
        if not len(x):
            raise ValueError("there are no images; give at least one")
        is_levels, top = x.dtype == torch.uint8, spec.max_value if x.dtype == torch.uint8 else 1
        if not (is_levels or x.is_floating_point()):
            raise ValueError(f"images have the type {x.dtype}; give uint8 levels or floats in [0, 1]")
        low, high = x.min().item(), x.max().item()
        if not 0 <= low <= high <= top:
            raise ValueError(f"images have values from {low:g} to {high:g}; give {x.dtype} from 0 to {top}")
        return datasets.to_float(x, spec) if is_levels else x.float()

    @torch.no_grad()
    def encode(self, images: Images) -> list[Tensor]:
        """Compute the posterior means of images, every group given the means of the groups above it.

        Args:
            images: [N, C, H, W], uint8 levels in 0..2^num_bits - 1 or floats in [0, 1]; an array or a tensor.

        Returns:
            One tensor per group, top group first, on the CPU; the first dimension is N.
        """
        parts = [self.model.encode(x.to(self.device)) for x in self._floats(images).split(AT_ONCE)]
        return [torch.cat(group).cpu() for group in zip(*parts, strict=True)]

    @torch.no_grad()
    def reconstruct(self, images: Images) -> Tensor:
        """Decode the posterior means of images [N, C, H, W] (as for :meth:`encode`) to float images in [0, 1]."""
        return torch.cat([self.model.reconstruct(x.to(self.device)).cpu() for x in self._floats(images).split(AT_ONCE)])

    @torch.no_grad()
    def sample(self, num: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """Sample images from the prior.

        Args:
            num: number of images.
            temperature: factor on the standard deviations of the priors.
            seed: seed of the samples; the same seed gives the same images.

        Returns:
            Mean images of the likelihood, [num, C, H, W] in [0, 1], on the CPU.
        """
        if num < 1:
            raise ValueError(f"{num} images were requested; give 1 or more")
        source = noise.generator(self.device, noise.FIGURES, seed)
        counts = [min(AT_ONCE, num - done) for done in range(0, num, AT_ONCE)]
        return torch.cat([self.model.sample(count, temperature, generator=source).cpu() for count in counts])


def _warn(text: str) -> None:
    say(f"warning: {text}", file=sys.stderr)


def _describe(spec: datasets.ImageSpec) -> str:
    return f"images {spec.height}x{spec.width}x{spec.channels} of {spec.num_bits} bits"


def open_run(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    weights: Weights = "auto",
    data_root: str | Path | None = None,
    other_data: bool = False,
    checkpoint: Path | None = None,
) -> SavedRun:
    """Open a run folder of any model family.

    Args:
        folder: run folder that a training script wrote.
        device: device of the model.
        weights: "auto" takes the averaged weights if there are any, "raw" the trained ones.
        data_root: folder of the data set, if it moved since training.
        other_data: accept data that differ from those that the run was trained on, with a warning.
        checkpoint: checkpoint to load; default the newest valid one.

    Returns:
        The run; its weights are read on first use.

    Raises:
        ValueError: not a run folder, damaged, written by a newer Strata, or of an unknown model family.
    """
    execution.full_float32()
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}; {_nearest(folder)}")
    files = RunFolder(folder)
    record, where = files.read_json("config.json"), files.config_path
    if str(record.get("family")) not in FAMILIES:
        raise ValueError(f"{where} names no known model family; choose a run of {', '.join(FAMILIES)}")
    version = record.get("format", FORMAT)
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise ValueError(f"{where} has format {version!r}, this version reads up to {FORMAT}; update Strata")
    family = FAMILIES[record["family"]]
    return SavedRun(
        folder=folder,
        record=record,
        family=family,
        config=from_json(family.config, record.get("config"), str(where)),
        spec=_spec(record, where),
        device=torch.device(device),
        weights=weights,
        data_root=None if data_root is None else Path(data_root),
        other_data=other_data,
        asked_checkpoint=checkpoint,
    )


def _spec(record: dict[str, Any], where: Path) -> datasets.ImageSpec:
    try:
        return datasets.ImageSpec(**record["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} has no valid image spec ({error}); restore it") from error


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of a script that reads a run and its data."""

    run: Path
    """Run folder."""
    weights: Weights = "auto"
    """auto: the averaged weights if the run has them."""
    data_root: Path | None = None
    """Folder of the data, if it moved since training."""
    other_data: bool = False
    """Accept data that differ from those that the run was trained on."""

    def open(self, device: str | torch.device = "cpu") -> SavedRun:
        """Open the run on a device."""
        return open_run(
            self.run, device=device, weights=self.weights, data_root=self.data_root, other_data=self.other_data
        )


def _nearest(folder: Path) -> str:
    """Suggest the run whose name is closest to one that does not exist, of the same folder or of ``runs``."""
    there = [p for parent in (folder.parent, Path("runs")) if parent.is_dir() for p in parent.iterdir() if p.is_dir()]
    for found in difflib.get_close_matches(folder.name, [p.name for p in there], n=1):
        return f"did you mean {next(p for p in there if p.name == found)}?"
    return "see which runs exist with: ls runs"
