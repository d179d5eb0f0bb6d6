"""Beta at which linear theory predicts that a beta-VAE on Bernoulli pixels stops learning.

To second order around the mean image p, the Bernoulli log-likelihood of pixel values is that of a unit normal about
(x - p) / sqrt(p (1 - p)). A linear VAE on those is probabilistic PCA whose noise variance is beta (Tipping & Bishop 1999;
Lucas et al. 2019): a direction is used while its eigenvalue of the whitened covariance exceeds beta, and then costs
log(eigenvalue / beta) / 2 nats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def critical_betas(images: npt.NDArray[Any]) -> Float64:
    """Eigenvalues of the covariance (ddof 1) of whitened pixels divided by their number, highest first: [P].

    These are pixel-mean betas: a latent direction is used only below its own. Constant pixels are left out of the
    covariance, but not of the number of pixels.

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
