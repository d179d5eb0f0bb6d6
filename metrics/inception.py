"""FID, KID, precision and recall of images, by torchvision's inception_v3 with weights from a user's file.

Published FIDs come from another set of Inception weights (TensorFlow's), so these are for comparing runs with each other.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.frechet import (
    Frechet,
    KernelDistance,
    PrecisionRecall,
    frechet_distance,
    kernel_distance,
    precision_recall,
)

INCEPTION_SIZE = 299
LARGEST_WEIGHTS = 2**30  # bytes; torchvision's take 109 MB


@dataclass(frozen=True, eq=False)
class ImageScores:
    """FID, KID and precision/recall of images; ``score`` is the FID, None (with the reason in notes) without weights."""

    score: float | None
    frechet: Frechet | None
    kernel: KernelDistance | None
    neighbours: PrecisionRecall | None
    notes: tuple[str, ...]


def check_images(images: Tensor, name: str = "images") -> None:
    """Refuse images that the extractor would misread silently: the FID of wrong input looks like any other number.

    Raises:
        ValueError: not [N, C, H, W] with 1 or 3 channels, not floats, values outside [0, 1], or fewer than two images.
    """
    shape = tuple(images.shape)
    if images.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        raise ValueError(f"{name} have shape {shape}, channels last; give images.permute(0, 3, 1, 2)")
    if images.ndim != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(f"{name} have shape {shape}; give [N, C, H, W] with 1 or 3 channels")
    if len(images) < 2:
        raise ValueError(f"{name} hold {len(images)} image; give at least two, whose covariance is defined")
    if not images.is_floating_point():
        raise ValueError(f"{name} have dtype {images.dtype}; give floats in [0, 1], for 8 bits images / 255")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):
        remedy = "(images + 1) / 2" if -1.0 <= low < 0.0 and high <= 1.0 else "images / 255"
        raise ValueError(f"{name} lie in [{low:.3g}, {high:.3g}]; give values in [0, 1], such as {remedy}")


def load_inception(weights: Path) -> Callable[[Tensor], Tensor]:
    """torchvision's inception_v3 from a file of its weights: images [B, C, H, W] in [0, 1] -> features [B, 2048].

    The file is read with ``weights_only=True``, so it can hold no code. Raises ValueError for a file that is missing,
    is not a state dict, or does not fit.
    """
    from torchvision.models import inception_v3

    if not weights.is_file() or weights.stat().st_size > LARGEST_WEIGHTS:
        raise ValueError(
            f"extractor weights {weights} are not there, or no file of at most {LARGEST_WEIGHTS:,} bytes; "
            "save torchvision's inception_v3 state dict under that name"
        )
    try:
        if zipfile.is_zipfile(weights):
            with zipfile.ZipFile(weights) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("its parts are compressed, which torch never does")
        state = torch.load(weights, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "Conv2d_1a_3x3.conv.weight" not in state:
            raise ValueError("it has no Conv2d_1a_3x3.conv.weight")
        model = inception_v3(weights=None, init_weights=False, transform_input=True)
        model.load_state_dict(state)
    except Exception as error:  # bytes of unknown origin can make the reader raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(
            f"{weights} is not a state dict of torchvision's inception_v3 ({reason}); save model.state_dict()"
        ) from error
    model.fc = nn.Identity()
    model.eval().requires_grad_(False)

    def extract(images: Tensor) -> Tensor:
        colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        resized = F.interpolate(colour.float(), size=INCEPTION_SIZE, mode="bilinear", antialias=True)
        features: Tensor = model(2.0 * resized - 1.0)
        return features

    return extract


def image_scores(
    real: Tensor, generated: Tensor, weights: Path | None, *, seed: int, batch_size: int = 32
) -> ImageScores:
    """FID, KID and precision/recall of images [N, C, H, W] in [0, 1]; null with a reason where ``weights`` is None.

    Raises:
        ValueError: images of another type, layout or range; see :func:`check_images`.
    """
    check_images(real, "real images")
    check_images(generated, "generated images")
    if weights is None:
        reason = "no extractor weights were given: FID, KID and precision/recall need a file of inception_v3 weights"
        return ImageScores(None, None, None, None, (reason,))
    extract = load_inception(weights)
    features = [torch.cat([extract(part) for part in images.split(batch_size)]) for images in (real, generated)]
    frechet = frechet_distance(*features)
    neighbours = precision_recall(*features) if min(map(len, features)) > 5 else None
    notes = (*frechet.notes, "torchvision's weights: compare with figures from the same weights only")
    if neighbours is None:
        notes += ("precision and recall need at least 6 images on either side",)
    return ImageScores(frechet.score, frechet, kernel_distance(*features, seed=seed), neighbours, notes)
