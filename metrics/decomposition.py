"""The rate in three parts: E KL(q(z|x) || p) = I(x; z) + TC(z) + sum_j KL(q(z_j) || p(z_j)), prior standard normal.

The terms are computed from the full mixture: minibatch estimators are off by up to tens of nats and are fit only for
gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from metrics.aggregate_posterior import as_posterior, marginal_entropy
from metrics.arrays import Array, Float64, check_count

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
NUMBERS_AT_ONCE = 2**22  # log densities held at a time


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Parts of the rate, in nats per image; they sum to ``rate``.

    Args:
        rate: mean KL(q(z|x) || p), exact.
        index_code_information: I(x; z), at most log N; sampled.
        total_correlation: TC of the aggregate posterior, computed as the remainder, with the same sampling error.
        dimension_wise_kl: sum_j KL(q(z_j) || p(z_j)), by quadrature.
        per_latent: [D], the terms of ``dimension_wise_kl``.
        standard_error: of the two sampled parts.
        ceiling: log N, the most that I(x; z) can be.
        num_draws: samples of z.
    """

    rate: float
    index_code_information: float
    total_correlation: float
    dimension_wise_kl: float
    per_latent: Float64
    standard_error: float
    ceiling: float
    num_points: int
    num_draws: int
    seed: int
    notes: tuple[str, ...]


def decompose_rate(means: Array, variances: Array, *, seed: int, num_draws: int = 2_000) -> Decomposition:
    """Split the rate of posteriors N(mean, variance), both [N, D], by the mixture of all N (Chen et al. 2018, eq. 2).

    The cost is num_draws x N x D. ``means`` should be the whole evaluation set: I(x; z) is about these N images.
    """
    mean, variance = as_posterior(means, variances)
    check_count(num_draws, "num_draws", 2)
    second_moment = np.mean(mean**2 + variance, axis=0)
    rate = float(0.5 * (second_moment - 1.0 - np.log(variance).mean(axis=0)).sum())
    pairs = [marginal_entropy(mean[:, d], variance[:, d]) for d in range(mean.shape[1])]
    # KL >= 0, and the quadrature's error of about 1e-5 nat must not show as a negative one.
    per_latent = np.maximum(0.0, HALF_LOG_TWO_PI + 0.5 * second_moment - np.array([h for h, _ in pairs]))
    notes = tuple(f"latent {d}: {note}" for d, (_, found) in enumerate(pairs) for note in found)
    draws = _index_code_draws(mean, variance, num_draws, np.random.default_rng(seed))
    information, standard_error = float(draws.mean()), float(draws.std(ddof=1) / math.sqrt(num_draws))
    ceiling = math.log(len(mean))
    assert draws.max() <= ceiling + 1e-6, "q(z) holds q(z|x) with weight 1/N, so each draw is at most log N"
    total_correlation = rate - information - float(per_latent.sum())
    if total_correlation < 0:
        notes += ("total correlation came out below 0: within its sampling error it is 0",)
    return Decomposition(
        rate=rate,
        index_code_information=information,
        total_correlation=total_correlation,
        dimension_wise_kl=float(per_latent.sum()),
        per_latent=per_latent,
        standard_error=standard_error,
        ceiling=ceiling,
        num_points=len(mean),
        num_draws=num_draws,
        seed=seed,
        notes=notes,
    )


def _index_code_draws(mean: Float64, variance: Float64, num_draws: int, rng: np.random.Generator) -> Float64:
    """log q(z|x) - log q(z) at draws of x and z, [num_draws], each at most log N.

    Points x are taken evenly over the rows in random order, which spreads the draws better than with replacement.
    """
    num_points, num_latents = mean.shape
    chosen = np.concatenate([rng.permutation(num_points) for _ in range(-(-num_draws // num_points))])[:num_draws]
    z = mean[chosen] + np.sqrt(variance[chosen]) * rng.standard_normal((num_draws, num_latents))
    own = _log_density(z, mean[chosen], variance[chosen]).sum(axis=1)
    draws = np.empty(num_draws)
    step = max(1, NUMBERS_AT_ONCE // num_points)
    for start in range(0, num_draws, step):
        part = slice(start, start + step)
        joint = np.zeros((len(z[part]), num_points))
        for d in range(num_latents):
            joint += _log_density(z[part, d, None], mean[:, d], variance[:, d])
        largest = joint.max(axis=1)
        mixture = largest + np.log(np.exp(joint - largest[:, None]).sum(axis=1)) - math.log(num_points)
        draws[part] = own[part] - mixture
    return draws


def _log_density(z: Float64, mean: Float64, variance: Float64) -> Float64:
    return -0.5 * ((z - mean) ** 2 / variance + np.log(variance)) - HALF_LOG_TWO_PI
