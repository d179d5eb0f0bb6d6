"""A trained run opened again: its configuration, its model with the trained weights, its data."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import datasets
from launch.console.config import SharedConfig, from_json
from launch.families import FAMILIES
from launch.families.family import Family
from launch.training import checkpoint
from launch.training.checkpoint import load_state
from launch.training.folder import RunFolder
from launch.training.model import VAE, as_module


@dataclass(frozen=True)
class SavedRun:
    """What a finished or interrupted run left: its configuration and how to get its model."""

    folder: RunFolder
    record: dict[str, Any]
    family: Family
    config: SharedConfig
    spec: datasets.ImageSpec

    def new_model(self) -> VAE:
        """The model of this run with fresh weights."""
        return self.family.build_model(self.config, self.spec)

    def load_model(
        self, device: torch.device, *, weights: str = "auto", path: Path | None = None
    ) -> tuple[VAE, int, Path]:
        """The trained model in eval mode, its optimiser step, and the checkpoint that it came from.

        Args:
            device: where it goes.
            weights: "auto" takes the averaged weights if there are any, "raw" the trained ones.
            path: a certain checkpoint; default the newest valid one.

        Raises:
            ValueError: there is no valid checkpoint, or it does not fit the model (keys named).
        """
        if path is not None:
            content = checkpoint.load(path)
        else:
            found = next(
                checkpoint.newest_valid(
                    self.folder.checkpoints, lambda text: print(f"warning: {text}", file=sys.stderr)
                ),
                None,
            )
            if found is None:
                raise ValueError(f"{self.folder.path} has no valid checkpoint yet; train it first")
            path, content = found
        averaged = weights == "auto" and content.get("ema") is not None
        model = self.new_model()
        load_state(model, content["ema"] if averaged else content["model"], str(path))
        module = as_module(model)
        return module.to(device).eval().requires_grad_(False), int(content["step"]), path  # type: ignore[return-value]


def open_run(path: Path) -> SavedRun:
    """Read a run folder's configuration.

    Raises:
        ValueError: not a run folder, damaged, or of an unknown family.
    """
    if not path.is_dir():
        raise ValueError(f"there is no run folder {path}; see which runs exist with: ls runs")
    folder = RunFolder(path)
    record = folder.read_json("config.json")
    if not isinstance(record, dict) or str(record.get("family")) not in FAMILIES:
        raise ValueError(f"{folder.config_path} names no known model family; choose a run of {', '.join(FAMILIES)}")
    family = FAMILIES[record["family"]]
    config = from_json(family.config, record.get("config"), str(folder.config_path))
    try:
        spec = datasets.ImageSpec(**record["spec"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder.config_path} has no valid image spec ({error}); restore it") from error
    return SavedRun(folder, record, family, config, spec)
