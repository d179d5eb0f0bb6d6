"""The training loss of NVAE: the ELBO with a balanced, warmed-up KL, plus spectral and batch-norm penalties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metrics.elbo import terms
from metrics.objective import Loss
from nvae.batch_norm import batch_norm_penalty, num_ranks
from nvae.convolution import DataInitConv2d, use_weights
from nvae.model import NVAE
from nvae.spectral import SpectralRegulariser

KL_FLOOR = 0.01


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights and schedules of the loss (Vahdat & Kautz 2020, section 3 and table 6)."""

    kl_anneal_portion: float = 0.3
    """Share of all steps over which the KL coefficient rises to 1."""
    kl_const_portion: float = 1e-4
    """Share of all steps before it starts to rise."""
    kl_const_coefficient: float = 1e-4
    """Smallest KL coefficient."""
    kl_balance: bool = True
    """Balance the groups' KL during warm-up, so that none is switched off."""
    spectral_weight: float = 0.1
    """lambda: weight of the spectral and the batch-norm penalty. 0 leaves both out."""
    spectral_weight_initial: float | None = None
    """Weight at the start, annealed log-linearly to spectral_weight with the KL coefficient. None: constant."""
    num_power_iterations: int = 4
    """Power iterations per step."""

    def __post_init__(self) -> None:
        """Refuse what makes no schedule."""
        for name in ("kl_anneal_portion", "kl_const_portion", "kl_const_coefficient"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 0 to 1")
        if not (math.isfinite(self.spectral_weight) and self.spectral_weight >= 0.0):
            raise ValueError(f"spectral_weight is {self.spectral_weight}; give 0 or a positive number")
        initial = self.spectral_weight_initial
        if initial is not None and not (initial > 0.0 and self.spectral_weight > 0.0):
            raise ValueError(
                f"spectral_weight_initial is {initial} with spectral_weight {self.spectral_weight}; "
                "log-linear annealing needs both above 0"
            )
        if self.num_power_iterations < 1:
            raise ValueError(f"num_power_iterations is {self.num_power_iterations}; give 1 or more")


def kl_coefficient(step: int, total_steps: int, config: ObjectiveConfig) -> float:
    """Weight of the KL at a step: linear after a constant start, at most 1."""
    start, length = config.kl_const_portion * total_steps, config.kl_anneal_portion * total_steps
    ramp = (step - start) / length if length > 0 else float(step >= start)
    return max(min(ramp, 1.0), config.kl_const_coefficient)


def spectral_weight(coefficient: float, config: ObjectiveConfig) -> float:
    """Lambda at a KL coefficient: constant, or log-linear from its initial value."""
    if config.spectral_weight_initial is None:
        return config.spectral_weight
    start, end = math.log(config.spectral_weight_initial), math.log(config.spectral_weight)
    return math.exp((1.0 - coefficient) * start + coefficient * end)


def kl_balance_alpha(groups_per_scale: Sequence[int]) -> Tensor:
    """Importance of each group, top first, [L]: positions of its scale over groups of its scale, smallest 1.

    ``groups_per_scale`` is highest resolution first, as in the configuration.
    """
    alpha = [(2**s) ** 2 / count for s, count in enumerate(reversed(groups_per_scale)) for _ in range(count)]
    values = torch.tensor(alpha)
    return values / values.min()


def kl_balance_coefficients(kl_per_group: Tensor, alpha: Tensor) -> Tensor:
    """Factors on the groups' KL during warm-up, [L], with mean 1 and no gradient.

    Proportional to the group's mean |KL| (floored by 0.01) over its alpha, so that a group gets the more of the
    penalty the more it already uses.

    Args:
        kl_per_group: mean over the batch of |KL|, [L].
        alpha: :func:`kl_balance_alpha`.
    """
    weights = (kl_per_group.detach() + KL_FLOOR) / alpha
    return weights / weights.mean()


def _mean_over_ranks(values: Tensor) -> Tensor:
    if num_ranks() > 1:
        dist.all_reduce(values)
        values /= num_ranks()
    return values


class NVAEObjective(nn.Module):
    """Callable loss of an NVAE; its state holds the power-iteration vectors and nothing of the model.

    Balancing uses the KL of the global batch, so that the ranks agree on it and one process on the same images would
    too; the published code balances each rank's own.

    Args:
        config: weights and schedules.
        model: the bare model (not wrapped in DDP), whose weights are penalised.
        total_steps: optimiser steps of the whole run.
        seed: of the power iteration's starting vectors.
    """

    alpha: Tensor

    def __init__(self, config: ObjectiveConfig, model: NVAE, total_steps: int, seed: int = 0) -> None:
        super().__init__()
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}; the schedule of the KL needs at least 1")
        self.config, self.total_steps = config, total_steps
        self.spectral = SpectralRegulariser(model, config.num_power_iterations, seed)
        alpha = kl_balance_alpha(model.config.groups).to(model.output_conv.weight.device)
        self.register_buffer("alpha", alpha, persistent=False)
        self._sets_weights_itself = any(isinstance(module, DataInitConv2d) for module in model.modules())
        self._model = (model,)  # in a tuple, so that its weights are none of this module's

    @property
    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """Shapes, without the batch, of the standard-normal tensors that a step wants: one per group, top first."""
        return self._model[0].group_shapes

    def after_step(self, skipped: bool | Tensor) -> None:
        """Nothing of this objective moves with the optimiser."""

    def _shares_weights(self) -> bool:
        """Whether the model convolves with the weights that were stacked for the penalty.

        Between ranks each layer computes its own instead: the stacks' gradients come last in the backward pass, and
        nothing of their exchange would overlap with it. So does a model that sets its weights from the first batch,
        and compiled cells, which fuse that work.
        """
        return num_ranks() == 1 and not self._sets_weights_itself and not self._model[0].is_compiled

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]`` at an optimiser step.

        ``model`` is what to call, perhaps wrapped in DDP. In training mode the KL is balanced while its coefficient is
        below 1 and the penalties are added; in evaluation mode they are left out.
        """
        coefficient = kl_coefficient(step, self.total_steps, self.config)
        weight = spectral_weight(coefficient, self.config) if model.training else 0.0
        matrices = self.spectral.matrices() if weight > 0.0 and self._shares_weights() else None
        with use_weights({} if matrices is None else self.spectral.weights(matrices)):
            elbo_terms = terms(model(x, noise), x)
        kl = elbo_terms.kl  # [B, L]
        if self.config.kl_balance and model.training and coefficient < 1.0:
            magnitude = _mean_over_ranks(kl.detach().abs().mean(0))
            kl = kl * kl_balance_coefficients(magnitude, self.alpha)
        total = (elbo_terms.distortion + coefficient * kl.sum(1)).mean()
        named = {
            "elbo": elbo_terms.elbo.detach().mean(),
            "rate": elbo_terms.rate.detach().mean(),
            "distortion": elbo_terms.distortion.detach().mean(),
            "kl_coefficient": total.new_full((), coefficient),
            "spectral_weight": total.new_full((), weight),
        }
        if weight > 0.0:
            spectral, batch_norm = self.spectral(matrices), batch_norm_penalty(self._model[0])
            total = total + weight * (spectral + batch_norm)
            named |= {"spectral": spectral.detach(), "batch_norm": batch_norm.detach()}
        return Loss(total, named, elbo_terms.kl.detach().mean(0))
