"""One-dimensional marginals of the aggregate posterior, q(z_j) = mean_i N(mu_ij, sigma_ij^2), and the MIG on them.

Evaluating N Gaussians at G points costs N x G; here the N components are put on a fine grid, split between
neighbouring points and neighbouring widths so that mean and variance are kept, and each width is convolved by FFT:
N + G log G. The golden cases agree with quadrature to better than 1e-4 nat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from metrics.arrays import Array, Float64, Int64, as_codes, usual_scale
from metrics.discrete import Labels, entropy, prepare_labels, top_two_gap
from metrics.factors import QUANTILE_BINS, Table, paired

WIDTH_RATIO = 1.05  # between neighbouring variances of the grid of widths; the error falls with (ratio - 1)^2
POINTS_PER_STD = 8.0  # of the narrowest component
TAIL_STDS = 8.0  # beyond the outermost mean, of the widest component
MAX_POINTS = 2**17  # points of the grid; a component that is too narrow for them is widened, with a note


def as_posterior(means: Array, variances: Array) -> tuple[Float64, Float64]:
    """Checked means and variances [N, D] in float64.

    Raises:
        ValueError: shapes that differ, a variance not above 0, or a scale where squares overflow or vanish.
    """
    mean = usual_scale(as_codes(means, "means"), "means").astype(np.float64)
    variance = usual_scale(as_codes(variances, "variances"), "variances").astype(np.float64)
    if mean.shape != variance.shape:
        raise ValueError(f"means {mean.shape} and variances {variance.shape} differ; give one variance for each mean")
    if variance.min() <= 0:
        raise ValueError(f"variances hold {variance.min():.3g}; give sigma^2 above 0, not its logarithm")
    return mean, variance


@dataclass(frozen=True, eq=False)
class AggregatePosteriorMIG:
    """MIG with information under the aggregate posterior; not comparable with the histogram's.

    Args:
        score: mean over factors, in [0, 1].
        per_factor: [K].
        mutual_information: [D, K] in nats.
        entropy: [K], empirical H(v_k): log n_k if the rows are a full grid.
        latent_entropy: [D], differential entropy of q(z_j) in nats.
        kept: the factors' columns that K counts.
    """

    score: float
    per_factor: Float64
    mutual_information: Float64
    entropy: Float64
    latent_entropy: Float64
    num_points: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def aggregate_posterior_mig(means: Array, variances: Array, factors: Table) -> AggregatePosteriorMIG:
    """MIG of posteriors N(mean, variance), all [N, D], about factors [N, K] (Chen et al. 2018, sec. 4.1).

    Every row counts alike, so give the full grid or uniform draws. The beta-TCVAE paper leaves shape out (give four
    factors) and draws Monte Carlo samples; here the marginals are integrated.
    """
    mean, variance = as_posterior(means, variances)
    data = paired(mean, factors)
    classes, cut_notes = data.binned(QUANTILE_BINS)
    labels = prepare_labels(classes)
    values, latent_entropy = np.zeros((mean.shape[1], len(data.kept))), np.zeros(mean.shape[1])
    notes = data.notes + cut_notes
    for d in range(mean.shape[1]):
        values[d], latent_entropy[d], note = _latent_information(mean[:, d], variance[:, d], labels)
        notes += tuple(f"latent {d}: {n}" for n in note)
    nats = entropy(labels)
    per_factor = top_two_gap(values) / nats
    return AggregatePosteriorMIG(
        float(per_factor.mean()), per_factor, values, nats, latent_entropy, len(data), data.kept, notes
    )


def marginal_entropy(mean: Float64, variance: Float64) -> tuple[float, tuple[str, ...]]:
    """Differential entropy in nats of the mixture of N(mean_i, variance_i), both [N]; and a note if it is inexact."""
    masses, step, notes = _mixture_masses(mean, variance, np.zeros((1, len(mean)), dtype=np.int64), 1)
    return float(_entropies(masses, step)[0]), notes


def _latent_information(mean: Float64, variance: Float64, labels: Labels) -> tuple[Float64, float, tuple[str, ...]]:
    """(I(z; v_k) [K], H(z), notes) of one latent."""
    offsets = np.cumsum([0, *labels.sizes])
    masses, step, notes = _mixture_masses(mean, variance, labels.dense + offsets[:-1, None], int(offsets[-1]))
    first = masses[: offsets[1]]
    whole = float(_entropies(first.sum(axis=0, keepdims=True), step)[0])
    given = _entropies(masses, step)
    information = np.empty(len(labels.values))
    for k in range(len(information)):
        share = np.bincount(labels.dense[k], minlength=labels.sizes[k]) / len(mean)
        information[k] = max(0.0, whole - float(share @ given[offsets[k] : offsets[k + 1]]))
    return information, whole, notes


def _entropies(masses: Float64, step: float) -> Float64:
    """Differential entropy in nats of each row of masses [R, G] (normalised here) on a grid of the given step."""
    share = masses / masses.sum(axis=1, keepdims=True)
    logarithm = np.maximum(share, np.finfo(np.float64).tiny)  # 0 log 0 is 0
    np.log(logarithm, out=logarithm)
    logarithm *= share
    return np.asarray(math.log(step) - logarithm.sum(axis=1))


def _mixture_masses(
    mean: Float64, variance: Float64, rows: Int64, num_rows: int
) -> tuple[Float64, float, tuple[str, ...]]:
    """Masses of mixtures on a grid, [num_rows, G]; each line of rows [K, N] assigns every component to one row."""
    span = float(np.ptp(mean)) + 2 * TAIL_STDS * math.sqrt(float(variance.max()))
    step = math.sqrt(float(variance.min())) / POINTS_PER_STD
    notes: tuple[str, ...] = ()
    if span / step > MAX_POINTS:
        step = span / MAX_POINTS
        floor = (POINTS_PER_STD * step) ** 2
        notes = (
            f"components narrower than {math.sqrt(floor):.2g} were widened to it, so the information is underestimated",
        )
        variance = np.maximum(variance, floor)
    num_points = 2 ** math.ceil(math.log2(span / step + 2))
    position = (mean - mean.min() + TAIL_STDS * math.sqrt(float(variance.max()))) / step
    frequency = 2.0 * np.pi * np.fft.rfftfreq(num_points)  # per grid point
    # A point split between neighbours at distances f and 1 - f gains the variance f (1 - f), which its width gives up.
    split_variance = position % 1.0 * (1.0 - position % 1.0)
    spectrum = np.zeros((num_rows, len(frequency)), dtype=np.complex128)
    for width, members, weight in _width_groups(variance / step**2 - split_variance):
        histogram = _split_histogram(position[members], weight, rows[:, members], num_rows, num_points)
        spectrum += np.fft.rfft(histogram, axis=1) * np.exp(-0.5 * width * frequency**2)
    masses = np.fft.irfft(spectrum, n=num_points, axis=1)
    return np.maximum(masses, 0.0), step, notes


def _width_groups(variance: Float64) -> list[tuple[float, Int64, Float64]]:
    """Components split between neighbouring variances of a geometric grid, keeping each one's variance.

    Returns (variance of the group, members, weight of each member) for each group that is not empty.
    """
    low, high = float(variance.min()), float(variance.max())
    count = max(1, math.ceil(math.log(high / low) / math.log(WIDTH_RATIO)))
    edges = low * (high / low) ** (np.arange(count + 1) / count)
    below = np.clip(np.searchsorted(edges, variance, side="right") - 1, 0, count - 1)
    gap = edges[below + 1] - edges[below]
    upper_weight = np.where(gap > 0, (variance - edges[below]) / np.where(gap > 0, gap, 1.0), 0.0)
    groups = []
    for g in range(count + 1):
        weight = np.where(below == g, 1.0 - upper_weight, np.where(below == g - 1, upper_weight, 0.0))
        members = np.flatnonzero(weight)
        if members.size:
            groups.append((float(edges[g]), members, weight[members]))
    return groups


def _split_histogram(position: Float64, weight: Float64, rows: Int64, num_rows: int, num_points: int) -> Float64:
    """[num_rows, num_points]: each weight split between the two neighbouring grid points of its position."""
    left = position.astype(np.int64)
    right_share = position - left
    index = rows * num_points + left
    split = [weight * (1.0 - right_share), weight * right_share]
    size = num_rows * num_points
    cells = np.zeros(size)
    for shift, part in enumerate(split):
        cells += np.bincount((index + shift).reshape(-1), weights=np.tile(part, len(rows)), minlength=size)[:size]
    return cells.reshape(num_rows, num_points)
