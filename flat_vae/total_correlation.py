"""beta-TCVAE: the rate split into mutual information, total correlation and dimension-wise KL (Chen et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flat_vae.base import FlatObjective, loss_of, ramp
from flat_vae.model import FlatVAE
from metrics.elbo import Group, VAEOutput, terms
from metrics.objective import Loss


@dataclass(frozen=True)
class RateTerms:
    """One-sample estimates in nats, [B] each; they add up to log q(z | x) - log p(z)."""

    mutual_information: Tensor
    total_correlation: Tensor
    dim_kl: Tensor


def log_stratified_weights(batch_size: int, num_images: int, device: torch.device | None = None) -> Tensor:
    """Log-weights of minibatch stratified sampling, [B, B]; the weights of each row sum to 1.

    With N images in the data set and M = B - 1, row i has 1/N for the image of z_i, (N - M) / (N M) for the next image
    and 1/M for all others (Chen et al. 2018, appendix). The published code puts 1/N into column 0 of every row; here it
    is on the diagonal, as the derivation requires.

    Raises:
        ValueError: the batch has one image, or more images than the data set.
    """
    others = batch_size - 1
    if others < 1 or batch_size > num_images:
        raise ValueError(
            f"objective tc estimates from pairs of images, but the batch has {batch_size} and the data {num_images}; "
            "give a --batch-size from 2 to the number of images"
        )
    weights = torch.full((batch_size, batch_size), 1.0 / others, dtype=torch.float64, device=device)
    same = torch.eye(batch_size, dtype=torch.bool, device=device)
    weights.masked_fill_(same.roll(1, dims=1), (num_images - others) / (num_images * others))
    return weights.masked_fill_(same, 1.0 / num_images).log()


def decompose(group: Group, num_images: int) -> RateTerms:
    """Split the one-sample rate of latents ``[B, D]`` by minibatch stratified sampling over the batch."""
    posterior, z = group.posterior, group.z
    log_weights = log_stratified_weights(len(z), num_images, z.device).to(z)
    log_q_given_x = group.log_q().sum(1)
    posteriors = type(posterior)(posterior.mean.unsqueeze(0), posterior.std.unsqueeze(0))
    every = posteriors.log_prob(z.unsqueeze(1))  # [B, B, D]
    log_q = torch.logsumexp(every.sum(2) + log_weights, dim=1)
    log_q_marginals = torch.logsumexp(every + log_weights.unsqueeze(2), dim=1).sum(1)
    return RateTerms(
        mutual_information=log_q_given_x - log_q,
        total_correlation=log_q - log_q_marginals,
        dim_kl=log_q_marginals - group.log_p().sum(1),
    )


class BetaTCVAE(FlatObjective):
    """distortion + alpha * I(x; z) + beta * TC + gamma * dimension-wise KL (Chen et al. 2018).

    The estimates are meant for training: from a batch they are biased by several nats, and TC may be negative. With
    several processes, each estimates from its local batch. The reported rate is in closed form.

    Args:
        model: the bare model.
        num_images: N, number of images in the training data.
        alpha: weight of the mutual information.
        beta: weight of the total correlation.
        gamma: weight of the dimension-wise KL.
        warmup_steps: steps over which beta rises linearly from 0.
    """

    batched = ("alpha", "beta", "gamma")

    def __init__(
        self, model: FlatVAE, num_images: int, alpha: float, beta: float, gamma: float, warmup_steps: float = 0.0
    ) -> None:
        super().__init__(model)
        self.num_images, self.warmup_steps = num_images, warmup_steps
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]``, B at least 2, at an optimiser step."""
        beta = self.beta * ramp(step, self.warmup_steps)
        output: VAEOutput = model(x, self.drawn(x, noise))
        parts = terms(output, x)
        split = decompose(output.groups[0], self.num_images)
        weighted = self.alpha * split.mutual_information + beta * split.total_correlation + self.gamma * split.dim_kl
        total = (parts.distortion + weighted).mean()
        return loss_of(
            total,
            parts.distortion,
            parts.rate,
            beta=beta,
            **{name: value.mean() for name, value in vars(split).items()},
        )
