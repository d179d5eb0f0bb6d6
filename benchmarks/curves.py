"""Loss curves in reduced precision against fp32: the same seeds, so the same images, noise and first weights."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import datasets
from benchmarks.harness import Row
from launch.console.config import DataConfig
from launch.families.nvae import NVAE_PRESETS
from launch.machine.distributed import Ranks
from launch.training.start import trainer_for

WINDOWS = 10  # parts of a run that are compared, to show differences that have vanished by its end


def curve(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Compare the -ELBO in nats of the tiny NVAE between precisions, seed by seed, with its spread over seeds."""
    seeds = range(options.seeds)
    with tempfile.TemporaryDirectory() as cache:
        data = _data(options, Path(cache))
        images = data.open("train")
        found = {
            precision: np.stack([_windows(options, data, images, seed, precision, device) for seed in seeds])
            for precision in ("fp32", *(p for p in options.precision if p != "fp32"))
        }
    rows = [
        _row(name, curves, options) | {"windows": curves.mean(0).round(2).tolist()} for name, curves in found.items()
    ]
    return rows + [_against(name, curves, found["fp32"]) for name, curves in found.items() if name != "fp32"]


def _data(options: argparse.Namespace, cache: Path) -> DataConfig:
    if options.dataset == "dsprites":
        return DataConfig(dataset="dsprites", dsprites_source="rendered")
    size = (options.image_size,)
    return DataConfig(dataset=options.dataset, data_root=options.data_root, image_size=size, cache_dir=cache)


def _windows(
    options: argparse.Namespace,
    data: DataConfig,
    images: datasets.Dataset,
    seed: int,
    precision: Any,
    device: torch.device,
) -> npt.NDArray[np.float64]:
    """Mean -ELBO of each tenth of a run, [WINDOWS]."""
    preset = NVAE_PRESETS["tiny"].build()
    run = replace(preset.run, seed=seed, precision=precision, batch_size=options.batch_size, max_steps=options.steps)
    config = replace(preset, data=data, run=run)
    torch.manual_seed(seed)
    trainer = trainer_for(config, images, Ranks(0, 1, device), options.steps)
    order = datasets.Batches(len(images), options.batch_size, seed)
    with datasets.Loader(images, order, 0, options.steps) as loader:
        losses = [-trainer.train_step(batch.images).terms["elbo"] for batch in loader]
    return torch.stack(losses).double().cpu().numpy().reshape(WINDOWS, -1).mean(1)


def _row(name: str, curves: npt.NDArray[np.float64], options: argparse.Namespace) -> Row:
    last = curves[:, -1]
    return {
        "benchmark": "curve",
        "variant": name,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "last_tenth": float(last.mean()),
        "std_over_seeds": float(last.std(ddof=1)) if len(last) > 1 else None,
    }


def _against(name: str, curves: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> Row:
    """Differences at the same seed in units of the spread of fp32 over seeds, in the last tenth and in the worst one."""
    difference = (curves - reference).mean(0)  # [WINDOWS]
    row: Row = {
        "benchmark": "curve",
        "variant": f"{name} - fp32",
        "last_tenth": float(difference[-1]),
        "of_each_seed": (curves - reference)[:, -1].round(2).tolist(),
        "windows": difference.round(2).tolist(),
    }
    if len(reference) > 1:
        spread = reference.std(0, ddof=1)
        row |= {
            "std_of_seeds": spread.round(2).tolist(),
            "largest_in_std": float(np.abs(difference / spread).max()),
        }
    return row
