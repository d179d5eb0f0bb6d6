"""The training loss of NVAE: the ELBO with a balanced, warmed-up KL, plus spectral and batch-norm penalties."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metrics.elbo import terms
from metrics.objective import Loss, Objective
from nvae.batch_norm import batch_norm_penalty, sum_of_largest
from nvae.convolution import DataInitConv2d
from nvae.cross_rank import num_ranks
from nvae.model import NVAE
from nvae.sharing import use_weights
from nvae.spectral import SpectralRegulariser
from nvae.stacks import Stacks

KL_FLOOR = 0.01


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights and schedules of the loss (Vahdat & Kautz 2020, section 3 and table 6)."""

    kl_anneal_portion: float = 0.3
    """Share of all steps over which the KL coefficient rises to 1."""
    kl_const_portion: float = 1e-4
    """Share of all steps before the KL coefficient starts to rise."""
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
        """Refuse values that describe no schedule."""
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
    """Weight lambda of the penalties at a KL coefficient: constant, or log-linear from its initial value."""
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

    Proportional to the group's mean |KL| (floored at 0.01) over its alpha: the more a group is used, the larger its
    share of the penalty.

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


class NVAEObjective(Objective):
    """Loss of an NVAE; its state holds the vectors of the power iteration, but nothing of the model.

    The KL is balanced by its mean over the global batch, so that the result does not depend on the number of ranks. The
    published code balances the KL of each rank's local batch.

    Args:
        config: weights and schedules.
        model: the bare model, not wrapped in DistributedDataParallel; its weights are penalised.
        total_steps: optimiser steps of the whole run.
        seed: seed of the power iteration's starting vectors.
    """

    alpha: Tensor
    coefficient: Tensor
    penalty_weight: Tensor

    def __init__(self, config: ObjectiveConfig, model: NVAE, total_steps: int, seed: int = 0) -> None:
        super().__init__()
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}; the schedule of the KL needs at least 1")
        self.config, self.total_steps, self.noise_shapes = config, total_steps, model.group_shapes
        self.spectral = SpectralRegulariser(model, config.num_power_iterations, seed)
        device = model.output_conv.weight.device
        self.register_buffer("alpha", kl_balance_alpha(model.config.groups).to(device), persistent=False)
        for name in ("coefficient", "penalty_weight"):  # float64 without dimensions does not promote other tensors
            self.register_buffer(name, torch.zeros((), dtype=torch.float64, device=device), persistent=False)
        self._sets_weights_itself = any(isinstance(module, DataInitConv2d) for module in model.modules())
        self._model = (model,)  # in a tuple, so that its weights are not registered here
        self._prepared: int | None = None
        self._step: _Step | None = None

    def path(self, step: int) -> tuple[bool, bool]:
        """Path of operations in the loss at ``step``: (the KL is balanced, the weights are penalised).

        Everything else that depends on the step is in tensors that :meth:`prepare` fills.
        """
        coefficient = kl_coefficient(step, self.total_steps, self.config)
        return self.config.kl_balance and coefficient < 1.0, self.config.spectral_weight > 0.0

    def prepare(self, step: int) -> None:
        """Copy values that depend on ``step`` to the device, for all losses of this step."""
        if self._prepared == step:
            return
        coefficient = kl_coefficient(step, self.total_steps, self.config)
        self.coefficient.fill_(coefficient)
        self.penalty_weight.fill_(spectral_weight(coefficient, self.config))
        self._prepared = step

    @contextmanager
    def one_step(self, num_batches: int) -> Iterator[None]:
        """Context for the losses and backward passes of the ``num_batches`` batches of one optimiser step.

        Within it, weights are normalised once and the power iteration advances once. Every batch's loss contains the
        penalties. Only the first one carries their gradient, times ``num_batches`` because the losses are averaged.
        """
        self._step = step = _Step(num_batches)
        try:
            yield
        finally:
            self._step = None
        if step.stacks is not None and step.leaves is not None:
            leaves = step.leaves.tensors()
            used = [
                (t, leaf.grad) for t, leaf in zip(step.stacks.tensors(), leaves, strict=True) if leaf.grad is not None
            ]
            torch.autograd.backward([tensor for tensor, _ in used], [grad for _, grad in used])

    def _stacks(self) -> Stacks | None:
        """The weights for the model's convolutions, or None if every layer computes its own.

        Layers compute their own weights if they are initialised from data, and in compiled cells, which fuse that work.
        """
        if self._sets_weights_itself or self._model[0].is_compiled:
            return None
        if self._step is not None and self._step.leaves is not None:
            return self._step.leaves
        stacks: Stacks = self.spectral.stacks()
        if self._step is not None:
            self._step.stacks, self._step.leaves = stacks, stacks.leaves()
            return self._step.leaves
        return stacks

    def _penalties(self, stacks: Stacks | None) -> Tensor:
        """The spectral and the batch-norm penalty, [2]; without a gradient after a step's first batch."""
        step = self._step
        if step is not None and step.penalties is not None:
            return step.penalties
        norms = batch_norm_penalty(self._model[0]) if stacks is None else sum_of_largest(stacks.scales)
        penalties = torch.stack([self.spectral(stacks), norms])
        if step is not None:
            step.penalties = penalties.detach()
            if step.num_batches > 1:
                penalties = step.penalties + (penalties - step.penalties) * step.num_batches
        return penalties

    def forward(self, model: nn.Module, x: Tensor, step: int, noise: Sequence[Tensor] | None = None) -> Loss:
        """Loss of images ``[B, C, H, W]`` at an optimiser step.

        ``model`` is the model to call, which DDP may wrap. In training mode the KL is balanced while its
        coefficient is below 1 and the penalties are added; in evaluation mode they are left out.
        """
        self.prepare(step)
        balances, penalises = (is_on and model.training for is_on in self.path(step))
        stacks = self._stacks() if penalises else None
        with use_weights({} if stacks is None else self.spectral.stacks.given(stacks)):
            elbo_terms = terms(model(x, noise), x)
        kl = elbo_terms.kl  # [B, L]
        if balances:
            magnitude = _mean_over_ranks(kl.detach().abs().mean(0))
            kl = kl * kl_balance_coefficients(magnitude, self.alpha)
        total = (elbo_terms.distortion + self.coefficient * kl.sum(1)).mean()
        means = torch.stack([elbo_terms.elbo, elbo_terms.rate, elbo_terms.distortion]).detach().mean(1)
        named = dict(zip(("elbo", "rate", "distortion"), means.unbind(0), strict=True))
        named["kl_coefficient"] = self.coefficient.to(total.dtype, copy=True)
        named["spectral_weight"] = self.penalty_weight.to(total.dtype, copy=True) * float(penalises)
        if penalises:
            penalties = self._penalties(stacks)
            total = total + named["spectral_weight"] * penalties.sum()
            named |= dict(zip(("spectral", "batch_norm"), penalties.detach().unbind(0), strict=True))
        return Loss(total, named, elbo_terms.kl.detach().mean(0))


@dataclass
class _Step:
    """State shared by the batches of one optimiser step: weights, their leaves, and detached penalties [2]."""

    num_batches: int
    stacks: Stacks | None = None
    leaves: Stacks | None = None
    penalties: Tensor | None = None
