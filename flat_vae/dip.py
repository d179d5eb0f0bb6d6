"""DIP-VAE: a penalty pulls the covariance of the aggregate posterior towards the identity (Kumar et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flat_vae.base import FlatObjective, loss_of
from flat_vae.model import FlatVAE
from metrics.elbo import VAEOutput, terms
from metrics.normal import Normal
from metrics.objective import Loss


def batch_covariance(posterior: Normal, kind: str) -> Tensor:
    """Covariance [D, D] over the batch (ddof 0) of the posterior means, kind "i", or of the aggregate posterior, "ii"."""
    centred = posterior.mean - posterior.mean.mean(0)
    # not a matrix product, which autocast would compute in half precision
    covariance = (centred.unsqueeze(2) * centred.unsqueeze(1)).mean(0)
    return covariance if kind == "i" else covariance + torch.diag(posterior.std.square().mean(0))


class DIPVAE(FlatObjective):
    """distortion + rate + lambda_od * sum of squared off-diagonal covariances + lambda_d * sum of (variance - 1)^2.

    Kumar et al. 2017 (DIP-VAE-I and II). Covariances are those of the local batch.

    Args:
        model: the bare model.
        kind: "i" or "ii", see :func:`batch_covariance`.
        lambda_od: weight of the off-diagonal term.
        lambda_d: weight of the diagonal term.
    """

    batched = ("lambda_od", "lambda_d")

    def __init__(self, model: FlatVAE, kind: str, lambda_od: float, lambda_d: float) -> None:
        super().__init__(model)
        self.kind, self.lambda_od, self.lambda_d = kind, lambda_od, lambda_d

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]``."""
        output: VAEOutput = model(x, self.drawn(x, noise))
        parts = terms(output, x)
        covariance = batch_covariance(output.groups[0].posterior, self.kind)
        variance = covariance.diagonal()
        off_diagonal = (covariance - torch.diag(variance)).square().sum()
        diagonal = (variance - 1.0).square().sum()
        penalty = self.lambda_od * off_diagonal + self.lambda_d * diagonal
        total = (parts.distortion + parts.rate).mean() + penalty
        return loss_of(total, parts.distortion, parts.rate, dip_off_diagonal=off_diagonal, dip_diagonal=diagonal)
