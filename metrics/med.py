"""MED (Cao et al. 2022): DCI's disentanglement and completeness with information in place of a predictor's weights."""

from __future__ import annotations

from dataclasses import dataclass

from metrics.arrays import Array, Float64
from metrics.dci import concentration, importance_notes
from metrics.discrete import Binning
from metrics.factors import Table
from metrics.histogram import histogram


@dataclass(frozen=True, eq=False)
class MED:
    """MED with its parts; ``score`` is the disentanglement.

    Args:
        disentanglement: is what a latent knows about one factor only? In [0, 1].
        completeness: does one latent alone know a factor? Its logarithm's base is D.
        importance: [D, K], I / H(v_k).
        per_latent: [D]. per_factor: [K].
    """

    score: float
    disentanglement: float
    completeness: float
    importance: Float64
    per_latent: Float64
    per_factor: Float64
    num_points: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def med(codes: Array, factors: Table, *, bins: int = 20, binning: Binning = "width") -> MED:
    """Disentanglement and completeness of codes [N, D] about factors [N, K] from histogram information I / H(v_k).

    Nothing is trained and nothing is random: thousands of latents take seconds, where DCI takes minutes.
    """
    found = histogram(codes, factors, bins, binning)
    importance = found.mutual_information / found.entropy
    per_latent, latent_weight = concentration(importance)
    per_factor, factor_weight = concentration(importance.T)
    disentanglement = float(latent_weight @ per_latent)
    return MED(
        score=disentanglement,
        disentanglement=disentanglement,
        completeness=float(factor_weight @ per_factor),
        importance=importance,
        per_latent=per_latent,
        per_factor=per_factor,
        num_points=len(found.data),
        kept=found.data.kept,
        notes=found.notes + importance_notes(importance),
    )
