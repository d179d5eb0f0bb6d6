"""Beta at which a beta-VAE on Bernoulli pixels stops learning, as found and as linear theory predicts.

To second order around the mean image p, the Bernoulli log-likelihood of pixel values is that of a unit normal about
(x - p) / sqrt(p (1 - p)). A linear VAE on those is probabilistic PCA whose noise variance is beta (Tipping & Bishop 1999;
Lucas et al. 2019): a direction is used while its eigenvalue of the whitened covariance exceeds beta, and then costs
log(eigenvalue / beta) / 2 nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from launch.report.statistics import Float64

# nats of mean KL below which the latents carry almost no information; the trainer warns at the same value
COLLAPSED = 0.05


def critical_betas(images: npt.NDArray[Any]) -> Float64:
    """Eigenvalues of the covariance (ddof 1) of whitened pixels divided by their number, highest first: [P].

    An eigenvalue is the pixel-mean beta below which its latent direction is used. Constant pixels are left out of the
    covariance, but count among the pixels.

    Args:
        images: values in [0, 1], [N, P] with N at least 2.

    Raises:
        ValueError: fewer than two images, or values outside [0, 1].
    """
    x = np.asarray(images, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2 or x.min() < 0.0 or x.max() > 1.0:
        raise ValueError(
            f"images of shape {x.shape} have no critical betas; give [N, P] with 2 or more, values in [0, 1]"
        )
    varying = x.min(0) != x.max(0)
    mean = x.mean(0)[varying]
    whitened = (x[:, varying] - mean) / np.sqrt(mean * (1.0 - mean))
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.cov(whitened.T)))[::-1] / x.shape[1]
    return np.pad(np.maximum(eigenvalues, 0.0), (0, x.shape[1] - len(eigenvalues)))


def predicted_rate(betas: npt.NDArray[Any] | float, critical: Float64, latent_dim: int) -> Float64:
    """Nats of KL that the linear VAE with ``latent_dim`` latents spends at pixel-mean ``betas`` of any shape."""
    ratio = critical[:latent_dim] / np.asarray(betas, dtype=np.float64)[..., None]
    return np.asarray(0.5 * np.log(np.maximum(ratio, 1.0)).sum(-1))


def mean_image_nats(images: npt.NDArray[Any]) -> float:
    """Distortion in nats of decoding every image of [N, P] to the mean image, as a collapsed VAE does."""
    mean = np.clip(np.asarray(images, dtype=np.float64).mean(0), 1e-12, 1.0 - 1e-12)
    return float(-(mean * np.log(mean) + (1.0 - mean) * np.log1p(-mean)).sum())


@dataclass(frozen=True)
class Stop:
    """Point at which learning stops: the largest beta that still learns and the next one, which does not; None if there is none."""

    learns: float | None
    collapsed: float | None

    @property
    def words(self) -> str:
        """Predicate of a sentence in the report."""
        if self.learns is None:
            return "does not learn at any beta"
        if self.collapsed is None:
            return f"learns up to beta {self.learns:g}, the largest that was run"
        return f"learns at beta {self.learns:g} but not at {self.collapsed:g}"


def where_learning_stops(betas: Sequence[float], rates: Sequence[float]) -> Stop:
    """Find the last beta with a mean KL of at least .05 nats, and the next one, from the mean KL at ascending betas."""
    learning = [i for i, rate in enumerate(rates) if rate >= COLLAPSED]
    if not learning:
        return Stop(None, betas[0] if betas else None)
    last = learning[-1]
    return Stop(betas[last], betas[last + 1] if last + 1 < len(betas) else None)


def foreseen_stop(critical: Float64, latent_dim: int) -> float:
    """The beta at which the KL predicted by linear theory falls to .05 nats."""
    betas = np.geomspace(critical[0] * math.exp(-2.0), critical[0], 4001)
    rates = predicted_rate(betas, critical, latent_dim)
    return float(betas[np.flatnonzero(rates >= COLLAPSED)[-1]])


def theory_agrees(stop: Stop, foreseen: float) -> bool:
    """True if the predicted beta lies between the last that learns and the first that does not."""
    return stop.learns is not None and stop.learns <= foreseen <= (stop.collapsed or math.inf)
