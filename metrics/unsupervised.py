"""Scores that need no factors: total correlation, pairwise information, covariance distance, UDR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metrics.arrays import Array, Float64, Floats, as_codes, as_floats, same_rows, tamed, to_numpy, usual_scale
from metrics.discrete import Binning, bin_codes, crowded_note, mutual_information, prepare_labels
from metrics.factors import few_points_note

UDR_KL = 0.01  # nats; a latent below it is uninformative (Duan et al. 2020)
LASSO_ALPHA = 0.1


@dataclass(frozen=True, eq=False)
class TotalCorrelation:
    """Total correlation of the Gaussian with the codes' covariance, in nats.

    Args:
        score: at least 0; 0 for uncorrelated latents, +inf for exactly dependent ones (with a note).
        kept: the latents that are not constant.
        correlation: [D', D'] of the kept latents.
        shrinkage: weight of the diagonal in the Ledoit-Wolf estimate; 0 for the plain covariance.
    """

    score: float
    kept: tuple[int, ...]
    correlation: Float64
    shrinkage: float
    num_points: int
    notes: tuple[str, ...]


def gaussian_total_correlation(codes: Array) -> float:
    """.5 (sum_d log C_dd - log det C) in nats of codes [N, D]; constant latents left out, +inf if exactly dependent."""
    return total_correlation(codes).score


def total_correlation(codes: Array, *, shrink: bool = False) -> TotalCorrelation:
    """:func:`gaussian_total_correlation` with its parts. It needs N >> D; ``shrink`` regularises (Ledoit & Wolf 2004)."""
    array = tamed(as_codes(codes))[0].astype(np.float64)
    varying = array.min(axis=0) != array.max(axis=0)
    kept = tuple(int(d) for d in np.flatnonzero(varying))
    notes: tuple[str, ...] = ()
    if not varying.all():
        notes += (f"{int((~varying).sum())} constant latents were left out",)
    if len(kept) < 2:
        notes += ("fewer than two latents vary: nothing can correlate",)
        return TotalCorrelation(0.0, kept, np.eye(len(kept)), 0.0, len(array), notes)
    standardised = array[:, varying]
    standardised -= standardised.mean(axis=0)
    standardised /= np.sqrt(np.mean(standardised**2, axis=0))
    correlation, shrinkage = standardised.T @ standardised / len(standardised), 0.0
    if shrink:
        from sklearn.covariance import ledoit_wolf

        covariance, shrinkage = ledoit_wolf(standardised, assume_centered=True)
        diagonal = np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(diagonal, diagonal)
    if len(standardised) <= 10 * len(kept):
        notes += (f"{len(standardised)} points for {len(kept)} latents: the estimate is biased upwards",)
    eigenvalues = np.linalg.eigvalsh(correlation)
    if eigenvalues[0] <= eigenvalues[-1] * len(kept) * np.finfo(np.float64).eps:
        notes += ("some latents are exact linear functions of others: total correlation is infinite",)
        return TotalCorrelation(math.inf, kept, correlation, float(shrinkage), len(array), notes)
    score = max(0.0, -0.5 * float(np.log(eigenvalues).sum()))
    return TotalCorrelation(score, kept, correlation, float(shrinkage), len(array), notes)


@dataclass(frozen=True, eq=False)
class PairwiseInformation:
    """Information between latents, in nats.

    Args:
        score: mean over all pairs d != d' of the histogram I(d; d'); constant latents count with 0, as in other implementations.
        varying_score: the same over latents that are not constant.
        matrix: [D, D]; the diagonal is each binned latent's entropy.
    """

    score: float
    varying_score: float
    matrix: Float64
    num_points: int
    notes: tuple[str, ...]


def pairwise_information(codes: Array, *, bins: int = 20, binning: Binning = "width") -> PairwiseInformation:
    """Mean histogram information between two latents of codes [N, D]: 0 if independent, at most log(bins)."""
    binned = bin_codes(tamed(as_codes(codes))[0], bins, binning)
    matrix = mutual_information(binned, prepare_labels(binned.T.astype(np.int64)), bins)
    varying = binned.min(axis=1) != binned.max(axis=1)
    notes = few_points_note(binned.shape[1], bins, bins) + crowded_note(binned, bins, binning)
    if not varying.all():
        notes += (f"{int((~varying).sum())} constant latents count with 0; varying_score leaves them out",)
    return PairwiseInformation(
        _mean_off_diagonal(matrix), _mean_off_diagonal(matrix[varying][:, varying]), matrix, binned.shape[1], notes
    )


def _mean_off_diagonal(matrix: Float64) -> float:
    size = len(matrix)
    return float(matrix.sum() - np.trace(matrix)) / (size * (size - 1)) if size > 1 else 0.0


@dataclass(frozen=True, eq=False)
class CovarianceDistance:
    """Distance of each posterior's covariance from the covariance of the means.

    Args:
        score: mean_i ||Sigma_i - C||_F. An ideal model scores about sqrt(D), not 0.
        per_sqrt_dim: score / sqrt(D).
        offdiagonal: ||C - diag C||_F.
        covariance: C [D, D] of the means, ddof 0.
    """

    score: float
    per_sqrt_dim: float
    offdiagonal: float
    covariance: Float64
    num_points: int
    notes: tuple[str, ...] = ()


def covariance_distance(means: Array, variances: Array) -> CovarianceDistance:
    """mean_i ||diag(sigma_i^2) - C||_F of posterior means and variances, both [N, D]; C has ddof 0.

    This is the degree of disentanglement of a thesis on Frey Faces. It costs O(ND + D^2) and forms no D x D matrix per
    point. Raises ValueError for shapes that differ or negative variances.
    """
    mean = usual_scale(as_codes(means, "means"), "means").astype(np.float64)
    variance = usual_scale(as_codes(variances, "variances"), "variances").astype(np.float64)
    if mean.shape != variance.shape:
        raise ValueError(f"means {mean.shape} and variances {variance.shape} differ; give one variance for each mean")
    if variance.min() < 0:
        raise ValueError(f"variances hold the negative value {variance.min():.3g}; give sigma^2, not its logarithm")
    mean -= mean.mean(axis=0)  # in place, here and below: temporaries of this size would take half of the time
    covariance = mean.T @ mean / len(mean)
    diagonal = np.diag(covariance)
    off_diagonal = covariance - np.diag(diagonal)
    off_squared = float((off_diagonal**2).sum())
    variance -= diagonal
    score = float(np.sqrt(np.einsum("nd,nd->n", variance, variance) + off_squared).mean())
    return CovarianceDistance(score, score / math.sqrt(mean.shape[1]), math.sqrt(off_squared), covariance, len(mean))


@dataclass(frozen=True, eq=False)
class UDR:
    """Unsupervised disentanglement ranking of several models.

    Args:
        score: mean over models of ``per_model``.
        per_model: [M], median over the other models.
        pairs: [M, M], how one-to-one model j's latents (column) follow from model i's (row); diagonal 0.
        kept: per model the latents with enough KL.
    """

    score: float
    per_model: Float64
    pairs: Float64
    kept: tuple[tuple[int, ...], ...]
    method: Literal["lasso", "spearman"]
    num_points: int
    notes: tuple[str, ...]


def udr(codes: Sequence[Array], kl: Sequence[Array], *, method: Literal["lasso", "spearman"] = "lasso") -> UDR:
    """UDR (Duan et al. 2020) of at least two models trained alike.

    Args:
        codes: per model the means [N, D_m] of the same N images.
        kl: per model the mean KL in nats of each latent [D_m]; latents at or below .01 are set to zero before fitting.
        method: relate latents by Lasso (alpha .1) coefficients or by Spearman correlation.
    """
    if method not in ("lasso", "spearman"):
        raise ValueError(f"method={method!r} is not known; choose 'lasso' or 'spearman'")
    if len(codes) < 2 or len(codes) != len(kl):
        raise ValueError(f"{len(codes)} codes and {len(kl)} kl were given; give both for the same two models or more")
    arrays = [tamed(as_codes(c, f"codes[{m}]"))[0] for m, c in enumerate(codes)]
    keep = [_informative(array, k, m) for m, (array, k) in enumerate(zip(arrays, kl, strict=True))]
    ready = [_standardised(array) * mask for array, mask in zip(arrays, keep, strict=True)]
    num_models = len(ready)
    pairs = np.zeros((num_models, num_models))
    for i in range(num_models):
        same_rows(arrays[0].shape, arrays[i].shape, f"codes[0] and codes[{i}]")
        for j in range(num_models):
            if i != j:
                strength = _strength(ready[i], ready[j], method)
                pairs[i, j] = one_to_one(strength[keep[i]][:, keep[j]])
    per_model = np.array([np.median(np.delete(pairs[:, j], j)) for j in range(num_models)])
    dead = [m for m in range(num_models) if not keep[m].any()]
    notes = (f"models {dead} have no latent with KL above {UDR_KL} and score 0",) if dead else ()
    kept = tuple(tuple(int(d) for d in np.flatnonzero(mask)) for mask in keep)
    return UDR(float(per_model.mean()), per_model, pairs, kept, method, len(arrays[0]), notes)


def _informative(codes: Floats, kl: Array, model: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    values = as_floats(to_numpy(kl), f"kl[{model}]")
    if values.shape != (codes.shape[1],):
        raise ValueError(
            f"kl[{model}] {values.shape} does not match codes[{model}] {codes.shape}; give one KL per latent"
        )
    return np.asarray((values > UDR_KL) & (codes.min(axis=0) != codes.max(axis=0)))


def _standardised(codes: Floats) -> Float64:
    centred = codes.astype(np.float64) - codes.mean(axis=0, dtype=np.float64)
    std = centred.std(axis=0)
    standardised: Float64 = centred / np.where(std > 0, std, 1.0)
    return standardised


def _strength(source: Float64, target: Float64, method: Literal["lasso", "spearman"]) -> Float64:
    """[N, Di], [N, Dj] -> [Di, Dj], absolute."""
    if method == "spearman":
        from scipy.stats import rankdata

        ranks = [_standardised(rankdata(latents, axis=0)) for latents in (source, target)]
        return np.asarray(np.abs(ranks[0].T @ ranks[1]) / len(source))
    from sklearn.linear_model import Lasso

    return np.asarray(np.abs(np.atleast_2d(Lasso(alpha=LASSO_ALPHA).fit(source, target).coef_))).T


def one_to_one(strength: Float64) -> float:
    """Mean of two averages, over columns and over rows, of max^2 / sum of strengths [Di, Dj]; empty gives 0."""
    if strength.size == 0:
        return 0.0
    both = []
    for axis in (0, 1):
        total = strength.sum(axis=axis)
        both.append(np.mean(np.where(total > 0, strength.max(axis=axis) ** 2 / np.where(total > 0, total, 1.0), 0.0)))
    return float(np.mean(both))
