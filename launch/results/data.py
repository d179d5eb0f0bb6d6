"""The data of a trained run, opened again: the images that it was trained on, or a refusal that says what differs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from datasets import recipes
from launch.console.config import DataConfig
from launch.results.run import SavedRun


def open_data(run: SavedRun, split: str, data_root: Path | None = None, *, insist: bool = False) -> datasets.Dataset:
    """Open a split of a run's data, in the run's own image size and by the run's own rule of splits.

    The training images that are there now are compared with the recorded ones, because a split that was made of other
    images may hold images that the run was trained on.

    Args:
        run: the trained run.
        split: train, valid, test or all.
        data_root: where the data is now, if it moved.
        insist: use other data than the run was trained on, with a warning in place of the refusal.

    Raises:
        ValueError: the data differ from those that the run was trained on (named); the split has no images.
    """
    config = run.config.data if data_root is None else replace(run.config.data, data_root=data_root)
    recorded = _recorded(run)
    train = _train_images(run, config, recorded)
    changed = _differences(recorded, train)
    if changed and not insist:
        raise ValueError(
            f"the data differ from those that {run.folder.path} was trained on ({', '.join(changed)}), so images of "
            f"split {split} may have been trained on; bring the data back or name its folder (--data-root), "
            "or add --other-data to use them nevertheless"
        )
    if changed:
        print(f"warning: other data than the run was trained on: {', '.join(changed)}", file=sys.stderr)
    if split == "train" and train is not None:
        return train
    return _open(run, config, split, recorded)


def _recorded(run: SavedRun) -> dict[str, Any]:
    data = run.record.get("data")
    recipe = data.get("recipe") if isinstance(data, dict) else None
    return recipe if isinstance(recipe, dict) else {}


def _open(run: SavedRun, config: DataConfig, split: str, recorded: Mapping[str, Any]) -> datasets.Dataset:
    """Open a split as it is; where that gives images of another shape than the run's, in the run's shape."""
    seed = run.config.run.seed
    try:
        data = config.open(split, seed=seed, recorded=recorded)
        if data.spec == run.spec or config.dataset != "folder":
            return data
    except datasets.NoSuchSplit:
        raise
    except datasets.DataError:
        if config.dataset != "folder" or config.image_size is not None:
            raise
    return config.open(split, seed=seed, recorded=recorded, spec=run.spec)


def _train_images(run: SavedRun, config: DataConfig, recorded: Mapping[str, Any]) -> datasets.Dataset | None:
    try:
        return _open(run, config, "train", recorded)
    except datasets.NoSuchSplit:
        return None


def _differences(recorded: Mapping[str, Any], train: datasets.Dataset | None) -> list[str]:
    if not recorded:  # imported weights
        return []
    return ["the training images are not there"] if train is None else recipes.differences(recorded, train.recipe)
