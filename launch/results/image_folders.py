"""FID, KID, precision and recall of a folder of images against another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import datasets
import metrics
from launch.machine import files


def score_folders(generated: Path, reference: Path, extractor: Path | None, *, seed: int) -> dict[str, Any]:
    """Score all images below ``generated`` against all below ``reference`` by the weights in the file ``extractor``.

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
