"""Precision and coverage of a run's samples where all images that exist are known: dSprites, and data sets like it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import datasets
import metrics
from launch.machine import noise
from launch.training.model import VAE


def is_known_completely(data: datasets.Dataset) -> bool:
    """Whether ``data`` (its split "all") is binary and holds one image for each combination of its factors."""
    total = math.prod(data.factor_sizes) if data.factor_names else 0
    return data.spec.num_bits == 1 and total == len(data) and data.spec.num_dims % 64 == 0


def bank_of(data: datasets.Dataset) -> metrics.ImageBank:
    """All images of ``data``, ready for exact searches."""
    storage = getattr(data, "storage", None)
    if storage is not None and storage.is_packed and np.array_equal(storage.rows, np.arange(len(storage.array))):
        return metrics.ImageBank(np.asarray(storage.array))
    blocks = [data.images(range(start, min(start + 4096, len(data)))) for start in range(0, len(data), 4096)]
    return metrics.ImageBank(np.concatenate([np.packbits(b.numpy().reshape(len(b), -1), axis=1) for b in blocks]))


def score_samples(
    model: VAE, every_image: datasets.Dataset, held_out: datasets.Dataset, *, num: int, seed: int, batch_size: int
) -> dict[str, Any]:
    """Nearest-image scores of samples at temperature 1, of reconstructions, and of as many held-out images.

    The model's pixel means are rounded: what it draws, without the noise of drawing each pixel alone.

    Args:
        model: in eval mode.
        every_image: all images that exist, see :func:`is_known_completely`.
        held_out: images that the model has not seen.
        num: samples, and held-out images.
        seed: of the samples.
        batch_size: images at once.
    """
    bank = bank_of(every_image)
    rows = datasets.spread(len(held_out), min(num, len(held_out)))
    pictures = {
        "samples": _samples(model, num, seed, batch_size),
        "reconstructions": _reconstructions(model, held_out, rows, batch_size),
        "held_out": (held_out.images(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)),
    }
    return {name: metrics.to_plain(_scores(bank, every_image, images)) for name, images in pictures.items()}


def _scores(bank: metrics.ImageBank, data: datasets.Dataset, images: Iterator[Tensor]) -> metrics.NearestScores:
    nearest = bank.nearest(torch.cat([batch.round().to(torch.uint8).cpu() for batch in images]))
    return metrics.nearest_scores(nearest, data.factors(nearest.index), data.factor_sizes)


@torch.no_grad()
def _samples(model: VAE, num: int, seed: int, batch_size: int) -> Iterator[Tensor]:
    source = noise.generator(_device(model), noise.FIGURES, seed)
    for start in range(0, num, batch_size):
        yield model.sample(min(batch_size, num - start), 1.0, generator=source)


@torch.no_grad()
def _reconstructions(
    model: VAE, data: datasets.Dataset, rows: npt.NDArray[np.int64], batch_size: int
) -> Iterator[Tensor]:
    for start in range(0, len(rows), batch_size):
        yield model.reconstruct(
            datasets.to_float(data.images(rows[start : start + batch_size]), data.spec, _device(model))
        )


def _device(model: Any) -> torch.device:
    found: torch.device = next(model.parameters()).device
    return found
