"""JEMMIG (Do & Tran 2020): MIG that also requires the best latent to know nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metrics.arrays import Array, Float64, Int64
from metrics.discrete import Binning
from metrics.factors import Table
from metrics.histogram import histogram


@dataclass(frozen=True, eq=False)
class JEMMIG:
    """JEMMIG with its parts.

    Args:
        score: mean of ``per_factor``, in [0, 1], higher is better.
        nats: mean of ``per_factor_nats``, the raw figure, lower is better.
        per_factor: [K], 1 - nats / (H(v_k) + log bins).
        per_factor_nats: [K], H(z*, v_k) - I(z*; v_k) + I(z'; v_k) with z* the latent that knows most, z' the next.
        best_latent: [K], z*.
        mutual_information: [D, K] in nats. entropy: [K], H(v_k). latent_entropy: [D], H of the binned latents.
    """

    score: float
    nats: float
    per_factor: Float64
    per_factor_nats: Float64
    best_latent: npt.NDArray[np.intp]
    mutual_information: Float64
    entropy: Float64
    latent_entropy: Float64
    num_points: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def jemmig(codes: Array, factors: Table, *, bins: int = 20, binning: Binning = "width") -> JEMMIG:
    """Joint entropy minus the MIG's gap, of codes [N, D] about factors [N, K], by histograms.

    MIG does not penalise a latent that knows a second factor besides k; the joint entropy H(z*, v_k) does.
    """
    found = histogram(codes, factors, bins, binning)
    information, nats = found.mutual_information, found.entropy
    latent_entropy = np.array([_entropy(np.bincount(latent)) for latent in found.binned])
    best = information.argmax(axis=0)
    largest = information.max(axis=0)
    second = np.sort(information, axis=0)[-2] if len(information) > 1 else np.zeros_like(largest)
    joint = latent_entropy[best] + nats - largest
    raw = joint - largest + second
    per_factor = 1.0 - raw / (nats + math.log(bins))
    notes = found.notes
    if len(information) == 1:
        notes += ("there is one latent: nothing is subtracted from its information",)
    return JEMMIG(
        score=float(per_factor.mean()),
        nats=float(raw.mean()),
        per_factor=per_factor,
        per_factor_nats=raw,
        best_latent=best,
        mutual_information=information,
        entropy=nats,
        latent_entropy=latent_entropy,
        num_points=len(found.data),
        kept=found.data.kept,
        notes=notes,
    )


def _entropy(counts: Int64) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
