"""Batch-norm statistics for sampling, re-estimated once per checkpoint and temperature and kept beside the checkpoint."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from launch.machine import files, noise
from nvae import NVAE
from nvae.batch_norm import Statistics, read_statistics, reestimate_batch_norm, write_statistics

FORMAT = 1


def _key(path: Path, weights: str, temperatures: Sequence[float], num_batches: int, batch_size: int) -> dict[str, Any]:
    """All that the statistics depend on, beside the seed, which they are an average over."""
    return {
        "format": FORMAT,
        "checkpoint": files.sha256(path),
        "weights": weights,
        "temperatures": [float(t) for t in temperatures],
        "num_batches": num_batches,
        "batch_size": batch_size,
    }


def _read(path: Path, key: dict[str, Any], own: Statistics) -> Statistics | None:
    """Statistics kept for this key, or None where there are none that fit."""
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can end the reader with anything
        print(f"warning: {path} is damaged ({str(error)[:60]!r}) and is made again", file=sys.stderr)
        return None
    kept = content.get("statistics") if isinstance(content, dict) and content.get("key") == key else None
    if not isinstance(kept, dict) or kept.keys() != own.keys():
        return None
    fits = all(isinstance(kept[name], Tensor) and kept[name].shape == own[name].shape for name in own)
    return kept if fits else None


def apply_reestimated(
    model: NVAE,
    path: Path,
    *,
    weights: str,
    temperatures: Sequence[float],
    num_batches: int,
    batch_size: int,
    device: torch.device,
) -> Path:
    """Give ``model`` batch-norm statistics of samples at these temperatures (paper, section 4); returns their file.

    The plain average over ``num_batches`` batches in float32. Computed once: the file beside the checkpoint ``path`` is
    named by a hash of all that they depend on.

    Args:
        model: in evaluation mode.
        path: checkpoint that the model's weights are from.
        weights: which of the checkpoint's weights, "auto" or "raw".
        temperatures: one, or one per group, top first.
        num_batches: batches of samples.
        batch_size: samples in each.
        device: of the model.

    Raises:
        ValueError: a temperature that is not above 0, or not one per group.
        FloatingPointError: statistics that are not finite.
    """
    key = _key(path, weights, temperatures, num_batches, batch_size)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    file_path = path.with_name(f"batch-norm-{name}.pt")
    statistics = _read(file_path, key, read_statistics(model))
    if statistics is None:
        source = noise.generator(device, noise.FIGURES, "batch norm")
        temperature = temperatures[0] if len(temperatures) == 1 else list(temperatures)
        statistics = reestimate_batch_norm(
            model, lambda i: model.sample(batch_size, temperature, generator=source), num_batches
        )
        bad = [name for name, values in statistics.items() if not torch.isfinite(values).all()]
        if bad:
            raise FloatingPointError(f"re-estimated statistics are not finite (e.g. {bad[0]}); check the checkpoint")
        content = {"key": key, "statistics": {name: values.cpu() for name, values in statistics.items()}}

        def write(file: IO[bytes]) -> None:
            torch.save(content, file)

        files.write_atomically(file_path, write)
    write_statistics(model, statistics)
    return file_path
