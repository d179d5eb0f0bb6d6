"""Explicitness and size of DCI-ES (Eastwood et al. 2023): how simple a map reads the factors, and from how many latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import Array, Float64, Int64
from metrics.factors import Table, paired
from metrics.linear import standardised
from metrics.probes import r2
from metrics.reductions import halves

CAPACITIES = (0, 8, 32, 128, 512)
RIDGE = 1e-3  # penalty per row


@dataclass(frozen=True, eq=False)
class DCIES:
    """Explicitness and size; ``score`` is the explicitness.

    Args:
        explicitness: mean of ``per_factor``, in [-1, 1]: 1 if a linear map reads all factors, 0 if the loss falls
            evenly with log capacity, -1 if no map of the ladder reads anything.
        size: K / D; 1 if there is one latent for each factor.
        per_factor: [K], 1 - 2 x area under the loss over capacity.
        loss: [capacities, K], squared error on the scored half over the factor's variance, at most 1.
        capacities: random features beside the linear ones.
    """

    score: float
    explicitness: float
    size: float
    per_factor: Float64
    loss: Float64
    capacities: tuple[int, ...]
    num_train: int
    num_test: int
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]


def dci_es(codes: Array, factors: Table, *, seed: int = 0) -> DCIES:
    """Explicitness E and size S of codes [N, D] about factors [N, K]; D, C and I are :func:`metrics.dci`'s.

    E is 1 minus the area under the loss-capacity curve over that of a curve which falls evenly. The probes are ridge
    regressions on the latents and 0, 8, 32, 128, 512 random Fourier features (Rahimi & Recht 2007), fitted on one random
    half of the rows and scored on the other; the steps of this ladder count alike. The paper's probes and capacities
    differ from study to study, so E is comparable only with E from the same ladder. Classes count by their index.
    """
    data = paired(codes, factors)
    fit, score = halves(len(data), seed)
    features, targets = standardised(data.codes.astype(np.float64), fit), standardised(data.values, fit)
    rng = np.random.default_rng(seed)
    loss = np.stack([_loss(features, targets, fit, score, capacity, rng) for capacity in CAPACITIES])
    loss = np.minimum.accumulate(loss)  # a larger probe contains the smaller ones, so its loss is not higher
    area = ((loss[:-1] + loss[1:]) / 2.0).mean(axis=0)
    per_factor = 1.0 - 2.0 * area
    return DCIES(
        score=float(per_factor.mean()),
        explicitness=float(per_factor.mean()),
        size=len(data.kept) / data.codes.shape[1],
        per_factor=per_factor,
        loss=loss,
        capacities=CAPACITIES,
        num_train=len(fit),
        num_test=len(score),
        kept=data.kept,
        seed=seed,
        notes=data.notes,
    )


def _loss(
    features: Float64, targets: Float64, fit: Int64, score: Int64, capacity: int, rng: np.random.Generator
) -> Float64:
    """1 - R2, in [0, 1], of ridge regression on the latents and ``capacity`` random features."""
    num_latents = features.shape[1]
    frequency = rng.standard_normal((num_latents, capacity)) / np.sqrt(num_latents)
    waves = np.cos(features @ frequency + rng.uniform(0.0, 2.0 * np.pi, capacity))
    inputs = standardised(np.concatenate([features, waves], axis=1), fit)
    gram = inputs[fit].T @ inputs[fit] + RIDGE * len(fit) * np.eye(inputs.shape[1]) * (capacity > 0)
    gram += 1e-9 * len(fit) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs[fit].T @ targets[fit])
    return np.clip(1.0 - r2(inputs[score] @ weights, targets[score]), 0.0, 1.0)
