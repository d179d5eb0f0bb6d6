"""What a flat VAE minimises: each objective a small module named after its paper.

An objective is called with what to call as the model (bare or wrapped in DDP), images, step and noise, and returns a
:class:`Loss` in nats per image. ``noise_shapes`` says which standard-normal tensors it wants: the latents' first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from flat_vae.model import FlatVAE
from metrics.elbo import VAEOutput, sum_over_event, terms
from metrics.normal import Normal


@dataclass(frozen=True)
class Loss:
    """A training loss and its parts.

    Args:
        total: scalar to differentiate, nats per image, mean over the local batch.
        terms: detached scalars of the local batch: elbo, rate, distortion (unweighted) and what the objective adds.
        kl_per_group: mean KL in nats of the one group, [1], detached.
    """

    total: Tensor
    terms: dict[str, Tensor]
    kl_per_group: Tensor


def loss_of(total: Tensor, distortion: Tensor, rate: Tensor, **added: Tensor | float) -> Loss:
    """A loss from ``distortion`` and ``rate`` [B] and scalars worth watching."""
    distortion, rate = distortion.detach().mean(), rate.detach().mean()
    named = {"elbo": -(distortion + rate), "rate": rate, "distortion": distortion}
    scalars = {  # filled on the device: a copy from the host would wait for it
        name: value if isinstance(value, Tensor) else torch.full((), value, dtype=total.dtype, device=total.device)
        for name, value in added.items()
    }
    return Loss(total, named | {name: value.detach() for name, value in scalars.items()}, rate.unsqueeze(0))


def ramp(step: int, num_steps: float) -> float:
    """0 at step 0, then linearly to 1 at ``num_steps``; 1 where there is no ramp."""
    return min(step / num_steps, 1.0) if num_steps > 0 else 1.0


class FlatObjective(nn.Module):
    """What the objectives share: noise for the latents first, then for ``extra_noise``, and nothing of their own to train.

    Args:
        model: the bare model.
        extra_noise: shapes, without the batch, of further standard-normal tensors.
    """

    def __init__(self, model: FlatVAE, *extra_noise: tuple[int, ...]) -> None:
        super().__init__()
        self.noise_shapes: list[tuple[int, ...]] = [*model.group_shapes, *extra_noise]

    def drawn(self, x: Tensor, noise: Sequence[Tensor] | None) -> list[Tensor]:
        """``noise``, or fresh standard-normal tensors where it is None."""
        if noise is None:
            return [torch.randn(len(x), *shape, device=x.device) for shape in self.noise_shapes]
        if len(noise) != len(self.noise_shapes):
            raise ValueError(f"{len(noise)} noise tensors; give {len(self.noise_shapes)}, shapes {self.noise_shapes}")
        return list(noise)

    def after_step(self, skipped: bool | Tensor) -> None:
        """Nothing here moves with the optimiser."""


class Autoencoder(FlatObjective):
    """Distortion of the image decoded from the posterior's mean; no rate.

    The posterior's variance is never trained, so rate and elbo of an autoencoder are reported but bound nothing.
    """

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]``."""
        return self._decode_mean(model, x, x)

    def _decode_mean(self, model: nn.Module, seen: Tensor, x: Tensor) -> Loss:
        no_noise = seen.new_zeros(len(seen), *self.noise_shapes[0])
        parts = terms(model(seen, [no_noise]), x)
        return loss_of(parts.distortion.mean(), parts.distortion, parts.rate)


class DenoisingAutoencoder(Autoencoder):
    """Autoencoder that sees a corrupted image and is to give the clean one (Vincent et al. 2008).

    Args:
        model: the bare model.
        corruption: "zero" sets pixels (all channels) to zero, "gaussian" adds noise.
        amount: rate of zeroed pixels, or std of the noise.
    """

    def __init__(self, model: FlatVAE, corruption: str, amount: float) -> None:
        if corruption == "zero" and amount > 1.0:
            raise ValueError(f"--corruption-amount {amount} is the rate of zeroed pixels; give a number in [0, 1]")
        spec = model.spec
        channels = 1 if corruption == "zero" else spec.channels
        super().__init__(model, (channels, spec.height, spec.width))
        self.corruption, self.amount = corruption, amount

    def corrupt(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images as the encoder sees them, from standard-normal ``noise``."""
        if self.corruption == "gaussian":
            return x + self.amount * noise
        uniform: Tensor = torch.special.ndtr(noise)
        return x * (uniform >= self.amount)

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of clean images ``[B, C, H, W]``."""
        return self._decode_mean(model, self.corrupt(x, self.drawn(x, noise)[1]), x)


class BetaVAE(FlatObjective):
    """distortion + beta * rate (Higgins et al. 2017); with beta = 1 the VAE (Kingma & Welling 2013).

    Args:
        model: the bare model.
        beta: weight of the rate in nats.
        warmup_steps: over which beta rises linearly from 0.
    """

    def __init__(self, model: FlatVAE, beta: float = 1.0, warmup_steps: float = 0.0) -> None:
        super().__init__(model)
        self.beta, self.warmup_steps = beta, warmup_steps

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]`` at an optimiser step."""
        beta = self.beta * ramp(step, self.warmup_steps)
        parts = terms(model(x, self.drawn(x, noise)), x)
        total = (parts.distortion + beta * parts.rate).mean()
        return loss_of(total, parts.distortion, parts.rate, beta=beta)


class CapacityVAE(FlatObjective):
    """distortion + gamma * |rate - C(step)| (Burgess et al. 2018); the batch mean of the rate is compared.

    Args:
        model: the bare model.
        capacity: C at the end of its rise, nats.
        gamma: weight.
        warmup_steps: over which C rises linearly from 0.
    """

    def __init__(self, model: FlatVAE, capacity: float, gamma: float, warmup_steps: float) -> None:
        super().__init__(model)
        self.capacity, self.gamma, self.warmup_steps = capacity, gamma, warmup_steps

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]`` at an optimiser step."""
        capacity = self.capacity * ramp(step, self.warmup_steps)
        parts = terms(model(x, self.drawn(x, noise)), x)
        total = parts.distortion.mean() + self.gamma * (parts.rate.mean() - capacity).abs()
        return loss_of(total, parts.distortion, parts.rate, capacity=capacity)


def batch_covariance(posterior: Normal, kind: str) -> Tensor:
    """Covariance [D, D] over the batch (ddof 0) of the posterior means, kind "i", or of the aggregate posterior, "ii"."""
    centred = posterior.mean - posterior.mean.mean(0)
    # no matrix product, which autocast would do in half precision
    covariance = (centred.unsqueeze(2) * centred.unsqueeze(1)).mean(0)
    return covariance if kind == "i" else covariance + torch.diag(posterior.std.square().mean(0))


class DIPVAE(FlatObjective):
    """distortion + rate + lambda_od * sum of squared off-diagonal covariances + lambda_d * sum of (variance - 1)^2.

    Kumar et al. 2017 (DIP-VAE-I and II). Covariances are those of the local batch.

    Args:
        model: the bare model.
        kind: "i" or "ii", see :func:`batch_covariance`.
        lambda_od: weight off the diagonal.
        lambda_d: weight on the diagonal.
    """

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


class GroupedVAE(FlatObjective):
    """Sum over i of the distortion of images decoded from groups 1..i, + beta * rate (the Grouped-VAE report).

    Term i sees (z_1..z_i, 0..0). Its gradient reaches the whole decoder, but the encoder only through z_i: group i
    learns what the groups before it left over.

    Args:
        model: the bare model.
        sizes: latents of each group; None: two halves.
        beta: weight of the rate in nats.
        warmup_steps: over which beta rises linearly from 0.

    Raises:
        ValueError: the sizes do not add up to the model's latents.
    """

    def __init__(self, model: FlatVAE, sizes: Sequence[int] | None, beta: float, warmup_steps: float = 0.0) -> None:
        super().__init__(model)
        num_latents = model.config.latent_dim
        if sizes is None:
            sizes = (num_latents - num_latents // 2, num_latents // 2)
        if sum(sizes) != num_latents or min(sizes) < 1:
            raise ValueError(
                f"latent groups {tuple(sizes)} for {num_latents} latents; give sizes above 0 that add up to them"
            )
        self.ends = list(accumulate(sizes))
        self.beta, self.warmup_steps = beta, warmup_steps

    def view(self, z: Tensor) -> Tensor:
        """What the decoder sees: ``[B, D] -> [G * B, D]``, group by group."""
        views = []
        for start, end in pairwise([0, *self.ends]):
            hidden = z.new_zeros(len(z), z.shape[1] - end)
            views.append(torch.cat([z[:, :start].detach(), z[:, start:end], hidden], dim=1))
        return torch.cat(views)

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]`` at an optimiser step; distortion (and elbo) are those of all groups together."""
        beta = self.beta * ramp(step, self.warmup_steps)
        output: VAEOutput = model(x, self.drawn(x, noise), self.view)
        num_groups = len(self.ends)
        distortions = -output.likelihood.log_prob(x.repeat(num_groups, 1, 1, 1)).unflatten(
            0, (num_groups, -1)
        )  # [G, B]
        rate = sum_over_event(output.groups[0].kl())
        total = (distortions.sum(0) + beta * rate).mean()
        each = {f"distortion_groups_to_{i + 1}": value for i, value in enumerate(distortions.mean(1))}
        return loss_of(total, distortions[-1], rate, beta=beta, **each)
