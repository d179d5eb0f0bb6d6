"""Modularity (Ridgeway & Mozer 2018): the share of a latent's information that is about one factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metrics.arrays import ACTIVE_VARIANCE, Array, Float64
from metrics.discrete import Binning
from metrics.factors import Table
from metrics.histogram import Histogram, histogram

NUM_DRAWS = 1_000  # of the noise level


@dataclass(frozen=True, eq=False)
class Modularity:
    """Modularity with its parts.

    Args:
        score: mean over ALL latents, in [0, 1]; a dead latent counts 0, a noise latent about ``noise_level``.
        active_score: the same over active latents (variance of means above .01) alone; 0 if there is none.
        noise_level: expected modularity of a latent that knows nothing of these factors. It depends on their sizes
            alone: .99 for sizes (2, 100), .2 for five factors of ten classes.
        per_latent: [D].
        active: [D].
        mutual_information: [D, K] in nats, not divided by H.
    """

    score: float
    active_score: float
    noise_level: float
    per_latent: Float64
    active: npt.NDArray[np.bool_]
    mutual_information: Float64
    num_points: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def modularity(codes: Array, factors: Table, *, bins: int = 20, binning: Binning = "width") -> Modularity:
    """1 - (sum_k I^2 - max_k I^2) / ((K-1) max_k I^2) for each latent of codes [N, D], with histogram I (Ridgeway & Mozer)."""
    found = histogram(codes, factors, bins, binning)
    per_latent = concentration_of_squares(found.mutual_information)
    informed = found.mutual_information.max(axis=1) > 0
    active, notes = found.data.variance > ACTIVE_VARIANCE, found.notes
    if found.mutual_information.shape[1] == 1:
        notes += ("there is one factor: every latent that knows anything is modular",)
    if not informed.all():
        notes += (f"{int((~informed).sum())} latents carry no information and count 0; see active_score",)
    return Modularity(
        score=float(per_latent.mean()),
        active_score=float(per_latent[active].mean()) if active.any() else 0.0,
        noise_level=_noise_level(found),
        per_latent=per_latent,
        active=active,
        mutual_information=found.mutual_information,
        num_points=len(found.data),
        kept=found.data.kept,
        notes=notes,
    )


def concentration_of_squares(information: Float64) -> Float64:
    """1 - (sum_k I^2 - max_k I^2) / ((K-1) max_k I^2) of each row of [D, K]; 0 where a row is 0."""
    squared = information**2
    largest = squared.max(axis=1)
    others = (squared.sum(axis=1) - largest) / max(squared.shape[1] - 1, 1)
    return np.where(largest > 0, 1.0 - others / np.where(largest > 0, largest, 1.0), 0.0)


def _noise_level(found: Histogram) -> float:
    """Mean over latents of the modularity that noise in their place would have.

    2 N I of a latent that is independent of a factor is asymptotically chi-squared with (bins - 1)(classes - 1) degrees
    of freedom (Wilks 1938), where bins counts those that hold points. The draws are always the same.
    """
    rng = np.random.default_rng(0)
    classes = np.array(found.labels.sizes) - 1
    used = [np.count_nonzero(np.bincount(latent)) for latent in found.binned]
    levels = {
        bins: concentration_of_squares(rng.chisquare((bins - 1) * classes, size=(NUM_DRAWS, len(classes)))).mean()
        for bins in sorted(set(used))
        if bins > 1
    }
    return float(np.mean([levels[bins] for bins in used if bins > 1])) if levels else 0.0
