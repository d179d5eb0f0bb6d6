"""Scores from the histogram information I(latent; factor): MIG, MIG-sup, MIC. Nats inside, ratios outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metrics.arrays import ACTIVE_VARIANCE, Array, Float64, to_numpy
from metrics.discrete import Binning, bin_factors, mutual_information, prepare_labels, top_two_gap
from metrics.factors import Table
from metrics.histogram import histogram
from metrics.permutation import Baseline, permutation_baseline
from metrics.sampling import CodeOf, encode_grid


@dataclass(frozen=True, eq=False)
class MIG:
    """Mutual information gap with its parts.

    Args:
        score: mean over factors of (largest - second largest I over latents) / H, in [0, 1].
        per_factor: [K].
        mutual_information: [D, K] in nats.
        entropy: [K] in nats.
        ceiling: the score of codes = factors on the same rows with the same bins; 20 bins cannot tell 32 values apart.
        ceiling_per_factor: [K].
        num_points: N.
        kept: the factors' columns that K counts.
    """

    score: float
    per_factor: Float64
    mutual_information: Float64
    entropy: Float64
    ceiling: float
    ceiling_per_factor: Float64
    num_points: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def relative(self) -> float:
        """Score / ceiling."""
        return self.score / self.ceiling if self.ceiling > 0 else 0.0


def mig(codes: Array, factors: Table, *, bins: int = 20, binning: Binning = "width") -> MIG:
    """Histogram MIG of codes [N, D] about factors [N, K] (Chen et al. 2018, sec. 4; bins as Locatello et al. 2019).

    The gap is over bins of the means, by default of equal width; ``binning="quantile"`` does not depend on outliers.
    The paper's own estimate, from the aggregate posterior, is :func:`metrics.aggregate_posterior_mig`, and the two are
    not comparable. With one latent the gap is I itself. Continuous factors are cut into ``bins`` quantile bins. Raises
    ValueError for codes or factors that cannot be scored.
    """
    found = histogram(codes, factors, bins, binning)
    data, labels, nats, values, notes = found.data, found.labels, found.entropy, found.mutual_information, found.notes
    per_factor = top_two_gap(values) / nats
    ceiling = top_two_gap(mutual_information(bin_factors(labels, bins, binning), labels, bins)) / nats
    if data.codes.shape[1] == 1:
        notes += ("there is one latent: the gap is its information, with nothing to subtract",)
    return MIG(
        score=float(per_factor.mean()),
        per_factor=per_factor,
        mutual_information=values,
        entropy=nats,
        ceiling=float(ceiling.mean()),
        ceiling_per_factor=ceiling,
        num_points=len(data),
        kept=data.kept,
        notes=notes,
    )


def mig_full_grid(code_of: CodeOf, factor_sizes: Sequence[int] | Array, *, bins: int = 20) -> MIG:
    """MIG over every combination of the factors once (737,280 for dSprites): no sampling noise.

    ``code_of`` maps factors [n, K] to codes [n, D] and is called once for every combination.
    """
    codes, factors = encode_grid(code_of, factor_sizes)
    return mig(codes, factors, bins=bins)


@dataclass(frozen=True, eq=False)
class MIGSup:
    """MIG-sup with its parts.

    Args:
        score: mean over active latents of the gap between the two factors that a latent knows most about, in [0, 1].
        per_latent: [D], 0 for latents that are not active.
        active: [D], True if the variance of the means exceeds the threshold.
        mutual_information: [D, K] in nats.
        entropy: [K] in nats.
    """

    score: float
    per_latent: Float64
    active: npt.NDArray[np.bool_]
    mutual_information: Float64
    entropy: Float64
    num_points: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def mig_sup(
    codes: Array,
    factors: Table,
    *,
    bins: int = 20,
    binning: Binning = "width",
    active_variance: float = ACTIVE_VARIANCE,
) -> MIGSup:
    """MIG-sup of codes [N, D] (Li et al. 2020): I/H normalised per factor, then the gap over factors of each latent."""
    found = histogram(codes, factors, bins, binning)
    active = found.data.variance > active_variance
    per_latent = np.where(active, top_two_gap(found.mutual_information / found.entropy, axis=1), 0.0)
    notes = found.notes
    if not active.any():
        notes += (f"no latent varies by more than {active_variance}: nothing is encoded, the score is 0",)
    return MIGSup(
        score=float(per_latent[active].mean()) if active.any() else 0.0,
        per_latent=per_latent,
        active=active,
        mutual_information=found.mutual_information,
        entropy=found.entropy,
        num_points=len(found.data),
        kept=found.data.kept,
        notes=notes,
    )


@dataclass(frozen=True, eq=False)
class MIC:
    """Mutual information concentration of a subset of latents.

    Args:
        score: mean of ``per_factor``.
        per_factor: [K], (sum of I inside the subset - sum outside) / H. Not confined to [-1, 1].
        baseline: the same under shuffled factors; its ``mean`` [K] is the estimator's bias, which does not cancel.
        corrected: [K], ``per_factor`` minus the baseline's mean: the figure to compare.
        subset: the latents inside.
        mutual_information: [D, K] in nats.
        entropy: [K] in nats.
    """

    score: float
    per_factor: Float64
    baseline: Baseline
    corrected: Float64
    subset: tuple[int, ...]
    mutual_information: Float64
    entropy: Float64
    num_points: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def mic(
    codes: Array,
    factors: Table,
    subset: Sequence[int] | Array,
    *,
    bins: int = 20,
    binning: Binning = "width",
    num_shuffles: int = 20,
    seed: int = 0,
) -> MIC:
    """MIC of the latents in ``subset`` about each factor, codes [N, D], factors [N, K].

    Fix the subset before looking: all latents maximise the score. Each latent adds about (bins - 1)(n_k - 1) / 2N nats
    of bias, so noise in thousands of latents scores high; compare ``corrected``.
    """
    found = histogram(codes, factors, bins, binning)
    num_latents, nats = found.data.codes.shape[1], found.entropy
    chosen = _subset(subset, num_latents)
    sign = np.full(num_latents, -1.0)
    sign[chosen] = 1.0
    baseline = permutation_baseline(
        lambda shuffled: sign @ mutual_information(found.binned, prepare_labels(shuffled), bins) / nats,
        found.labels.dense.T,
        num_shuffles=num_shuffles,
        seed=seed,
    )
    per_factor, notes = sign @ found.mutual_information / nats, found.notes
    if len(chosen) == num_latents:
        notes += ("the subset holds every latent: MIC is then at its maximum whatever the code",)
    return MIC(
        score=float(per_factor.mean()),
        per_factor=per_factor,
        baseline=baseline,
        corrected=per_factor - baseline.mean,
        subset=tuple(chosen),
        mutual_information=found.mutual_information,
        entropy=nats,
        num_points=len(found.data),
        kept=found.data.kept,
        notes=notes,
    )


def _subset(subset: Sequence[int] | Array, num_latents: int) -> list[int]:
    """Sorted indices from indices or from a mask [D]."""
    given = to_numpy(subset)
    if given.dtype == np.bool_ and given.shape == (num_latents,):
        given = np.flatnonzero(given)
    fits = given.ndim == 1 and given.size > 0 and given.dtype.kind in "iu"
    if not fits or given.min() < 0 or given.max() >= num_latents or len(np.unique(given)) != len(given):
        raise ValueError(f"subset {given.tolist()} is not possible; give distinct indices from 0 to {num_latents - 1}")
    return sorted(int(d) for d in given)
