"""The no-latents row of an evaluation: a logistic per pixel, fitted to the training images of the same data set."""

from __future__ import annotations

import numpy as np
import torch

import datasets
from metrics.elbo import bits_per_dim
from metrics.pixel_baseline import count_levels, fit_pixel_baseline

MAX_TRAINING_IMAGES = 50_000


def _counts(dataset: datasets.Dataset, limit: int) -> torch.Tensor:
    """How often each value takes each level, [P, 2^bits], over at most ``limit`` evenly spaced images."""
    spec = dataset.spec
    counts = torch.zeros(spec.num_dims, 2**spec.num_bits, dtype=torch.int64)
    chosen = datasets.spread(len(dataset), limit)
    for block in np.array_split(chosen, -(-len(chosen) // 256)):
        count_levels(counts, dataset.images(block))
    return counts


def no_latents(train: datasets.Dataset, held_out: datasets.Dataset, num_images: int | None = None) -> dict[str, float]:
    """Nats and bits per dimension of ``held_out`` images under the per-pixel logistic."""
    spec = held_out.spec
    fitted = fit_pixel_baseline(_counts(train, MAX_TRAINING_IMAGES), spec.num_bits)
    nats = fitted.nats(_counts(held_out, num_images or len(held_out)))
    return {"negative_log_likelihood": nats, "bits_per_dim": float(bits_per_dim(nats, spec.num_dims))}
