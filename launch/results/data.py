"""The data of a trained run, opened again: the images that it was trained on, or a refusal that says what differs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import ImageSpec, recipes
from launch.console.config import DataConfig
from launch.console.terminal import one_line


def open_data(
    config: DataConfig, spec: ImageSpec, split: str, *, seed: int, recorded: Mapping[str, Any], run: Path, insist: bool
) -> datasets.Dataset:
    """Open a split of a run's data, in the run's own image size and by the run's own rule of splits.

    The training images that are there now are compared with the recorded ones, because a split that was made of other
    images may hold images that the run was trained on.

    Args:
        config: of the data, with the folder where it is now.
        spec: shape and bit depth of the run's images.
        split: train, valid, test or all.
        seed: of the run.
        recorded: recipe of the training images; {} for imported weights, which have none.
        run: folder of the run, for messages.
        insist: use other data than the run was trained on, with a warning in place of the refusal.

    Raises:
        ValueError: the data differ from those that the run was trained on (named); the split has no images.
    """

    def opened(name: str) -> datasets.Dataset:
        return _open(config, spec, name, seed=seed, recorded=recorded)

    try:
        train = opened("train")
    except datasets.NoSuchSplit:
        train = None
    changed = _differences(recorded, train)
    if changed and not insist:
        raise ValueError(
            f"the data differ from those that {run} was trained on ({', '.join(changed)}), so images of split {split} may "
            "have been trained on; bring the data back or name its folder (--data-root), or add --other-data to use them "
            "nevertheless"
        )
    if changed:
        print(one_line(f"warning: other data than the run was trained on: {', '.join(changed)}"), file=sys.stderr)
    return train if split == "train" and train is not None else opened(split)


def _open(
    config: DataConfig, spec: ImageSpec, split: str, *, seed: int, recorded: Mapping[str, Any]
) -> datasets.Dataset:
    """Open a split as it is; where that gives images of another shape than the run's, in the run's shape."""
    try:
        data = config.open(split, seed=seed, recorded=recorded)
        if data.spec == spec or config.dataset != "folder":
            return data
    except datasets.NoSuchSplit:
        raise
    except datasets.DataError:
        if config.dataset != "folder" or config.image_size is not None:
            raise
    return config.open(split, seed=seed, recorded=recorded, spec=spec)


def _differences(recorded: Mapping[str, Any], train: datasets.Dataset | None) -> list[str]:
    if not recorded:
        return []
    return ["the training images are not there"] if train is None else recipes.differences(recorded, train.recipe)
