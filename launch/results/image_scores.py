"""Scores of images: one folder against another, and samples against every image of a data set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import datasets
import metrics
from launch.machine import files
from launch.results.run import SavedRun

AT_ONCE = 4096  # images of the data set


def is_known_completely(data: datasets.Dataset) -> bool:
    """True if ``data`` (its split "all") is binary and holds one image for each combination of its factors."""
    total = math.prod(data.factor_sizes) if data.factor_names else 0
    return data.spec.num_bits == 1 and total == len(data) and data.spec.num_dims % 64 == 0


def bank_of(data: datasets.Dataset) -> metrics.ImageBank:
    """Prepare all images of ``data`` for exact searches."""
    storage = getattr(data, "storage", None)
    if storage is not None and storage.is_packed and np.array_equal(storage.rows, np.arange(len(storage.array))):
        return metrics.ImageBank(np.asarray(storage.array))
    blocks = [data.images(range(start, min(start + AT_ONCE, len(data)))) for start in range(0, len(data), AT_ONCE)]
    return metrics.ImageBank(np.concatenate([np.packbits(b.numpy().reshape(len(b), -1), axis=1) for b in blocks]))


def score_samples(run: SavedRun, held_out: datasets.Dataset, *, num: int, seed: int) -> dict[str, Any] | None:
    """Score samples at temperature 1, reconstructions, and held-out images by their nearest image of the data set.

    The model's pixel means are rounded, which avoids the noise of drawing each pixel independently.

    Args:
        run: a trained run.
        held_out: images that the model was not trained on.
        num: number of samples, and of held-out images.
        seed: seed of the samples.

    Returns:
        Plain results by name, or None if the data set is not one of which every image is known.
    """
    every_image = run.data("all") if held_out.factor_names else None
    if every_image is None or not is_known_completely(every_image):
        return None
    bank = bank_of(every_image)
    real = held_out.images(datasets.choose_rows(len(held_out), min(num, len(held_out))))
    pictures = {"samples": run.sample(num, seed=seed), "reconstructions": run.reconstruct(real), "held_out": real}
    return {name: metrics.to_plain(_scores(bank, every_image, images)) for name, images in pictures.items()}


def _scores(bank: metrics.ImageBank, data: datasets.Dataset, images: Tensor) -> metrics.NearestScores:
    nearest = bank.nearest(images.round())
    return metrics.nearest_scores(nearest, data.factors(nearest.index), data.factor_sizes)


def score_folders(generated: Path, reference: Path, extractor: Path | None, *, seed: int) -> dict[str, Any]:
    """Score all images below ``generated`` against all below ``reference``, with the weights in the file ``extractor``.

    Raises:
        ValueError: no weights, a folder without images, or fewer than two images in one.
    """
    if extractor is None:
        raise ValueError(
            "FID, KID and precision/recall need an extractor; give --inception FILE, a state dict of torchvision's "
            "inception_v3"
        )
    sides = {"generated": generated, "reference": reference}
    images = {name: _read(folder) for name, folder in sides.items()}
    found = metrics.to_plain(metrics.image_scores(images["reference"], images["generated"], extractor, seed=seed))
    return {
        "format": 1,
        "generated": {"folder": str(generated), "num_images": len(images["generated"])},
        "reference": {"folder": str(reference), "num_images": len(images["reference"])},
        "extractor": {"file": extractor.name, "sha256": files.sha256(extractor)},
        "seed": seed,
        "scores": {"images": found},
    }


def _read(folder: Path) -> torch.Tensor:
    data = datasets.open_dataset("folder", folder, "all")
    return datasets.to_float(data.images(range(len(data))), data.spec)
