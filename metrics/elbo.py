"""The ELBO, computed from the distributions that a forward pass returns.

Every model returns a :class:`VAEOutput`; a flat VAE has one group, NVAE many, and nothing here asks which. Values are
in nats per image unless a name says bits per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.likelihoods import Likelihood
from metrics.normal import Normal, log_ratio

ACTIVE_UNIT_NATS = 0.1  # mean KL above which a latent channel counts as in use (Vahdat & Kautz 2020)


@dataclass(frozen=True)
class Group:
    """Latents drawn together: ``z`` [B, ...], its posterior given the image, its prior given the groups above.

    Args:
        z: the latents that the decoder sees.
        posterior: q(base | x, groups above).
        prior: p(z | groups above).
        base: the draw from the posterior that a normalising flow transformed into ``z``; None without a flow. Flows
            must preserve volume, as the published ones do, so that log q(z) = log posterior(base).
    """

    z: Tensor
    posterior: Normal
    prior: Normal
    base: Tensor | None = None

    def log_q(self) -> Tensor:
        """Log q(z | x, above) in nats, elementwise."""
        return self.posterior.log_prob(self.z if self.base is None else self.base)

    def log_p(self) -> Tensor:
        """Log p(z | above) in nats, elementwise."""
        return self.prior.log_prob(self.z)

    def kl(self) -> Tensor:
        """KL in nats, elementwise: in closed form, or with a flow a one-sample estimate, which can be negative."""
        if self.base is None:
            return self.posterior.kl(self.prior)
        return log_ratio(self.posterior, self.base, self.prior, self.z)

    def kl_per_channel(self) -> Tensor:
        """KL of each latent channel, summed over space, mean over the batch: [C]."""
        kl = self.kl()
        return kl.flatten(2).sum(2).mean(0) if kl.dim() > 2 else kl.mean(0)


@dataclass(frozen=True)
class VAEOutput:
    """Distributions returned by a forward pass: p(x | z) and the groups of latents, top group first."""

    likelihood: Likelihood
    groups: Sequence[Group]


@dataclass(frozen=True)
class Terms:
    """The two parts of the ELBO in nats: ``log_likelihood`` [B] and ``kl`` [B, L], L groups, top first."""

    log_likelihood: Tensor
    kl: Tensor

    @property
    def distortion(self) -> Tensor:
        """-log p(x | z), [B]."""
        return -self.log_likelihood

    @property
    def rate(self) -> Tensor:
        """Sum of the groups' KL, [B]."""
        return self.kl.sum(1)

    @property
    def elbo(self) -> Tensor:
        """-(rate + distortion), [B]: a lower bound of log p(x)."""
        return self.log_likelihood - self.rate


def sum_over_event(values: Tensor) -> Tensor:
    """Sum over all dimensions but the first: [B, ...] -> [B]."""
    return values.flatten(1).sum(1)


def terms(output: VAEOutput, x: Tensor) -> Terms:
    """ELBO terms of images ``x`` [B, C, H, W] in [0, 1], from the distributions that a forward pass on them returned."""
    kl = torch.stack([sum_over_event(group.kl()) for group in output.groups], dim=1)
    return Terms(log_likelihood=output.likelihood.log_prob(x), kl=kl)


def log_weight(output: VAEOutput, x: Tensor) -> Tensor:
    """log p(x, z) - log q(z | x) at the drawn latents, [B]: the importance weight of one draw."""
    ratio = sum((sum_over_event(g.log_p() - g.log_q()) for g in output.groups), start=torch.zeros(()))
    return output.likelihood.log_prob(x) + ratio


def importance_bound(log_weights: Tensor) -> Tensor:
    """log mean_k exp(log_weights[b, k]), [B, K] -> [B]: the importance-weighted bound (Burda et al. 2016).

    It is at least the ELBO in expectation and tends to log p(x) as K grows.
    """
    return torch.logsumexp(log_weights, dim=1) - math.log(log_weights.shape[1])


def bits_per_dim(nats: float | Tensor, num_dims: int) -> float | Tensor:
    """A negative log-likelihood of ``nats`` per image as bits per dimension."""
    return nats / (math.log(2.0) * num_dims)


def active_units(kl_per_channel: Tensor, threshold: float = ACTIVE_UNIT_NATS) -> int:
    """Number of latent channels that carry more than ``threshold`` nats on average."""
    return int((kl_per_channel > threshold).sum())
