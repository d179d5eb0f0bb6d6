"""Several flat VAEs of one architecture, with different seeds or weights of the objective, trained as one model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from flat_vae.base import FlatObjective
from flat_vae.model import FlatVAE, View
from metrics.elbo import VAEOutput
from metrics.objective import Loss

_PLAIN = (bool, int, float, str, tuple, list)  # settings of an objective, unlike the registries of nn.Module


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack [N, ...] whose slices keep the memory layout of the tensors; ``torch.stack`` would lose channels_last."""
    like = tensors[0]
    stacked = like.new_empty(len(tensors) * like.numel())
    stacked = stacked.as_strided((len(tensors), *like.shape), (like.numel(), *like.stride()))
    for slot, tensor in zip(stacked, tensors, strict=True):
        slot.copy_(tensor)
    return stacked


class Replicas:
    """N models whose weights are slices of stacked tensors, so that one pass serves all of them.

    Every model can still be used alone: its parameters and their gradients are views of the stacks, so that optimisers,
    evaluation and checkpoints treat it as any model. ``torch.vmap`` turns the layers into grouped convolutions and
    batched matrix products. The sum of the losses is differentiated, outside of ``vmap``; gradients of different models
    do not mix.

    The gradient of a stack is never None: gradients are summed in place until :meth:`zero_grad`.

    Args:
        models: models of one configuration on one device; do not move them afterwards.
        objectives: one for each model; they may differ in their batched weights, such as beta.
    """

    def __init__(self, models: Sequence[FlatVAE], objectives: Sequence[FlatObjective]) -> None:
        others = [*(b for module in (*models, *objectives) for b in module.buffers())]
        others += [p for objective in objectives for p in objective.parameters()]
        assert not others, "only the models' parameters are stacked"
        self.models = list(models)
        self.objective = objectives[0]
        self.weights = self._differing(objectives)
        self.parameters: dict[str, Tensor] = {}
        for name, first in self.models[0].named_parameters():
            own = [model.get_parameter(name) for model in self.models]
            stacked = _stack([p.detach() for p in own])
            gradients = _stack([torch.zeros_like(first)] * len(own))
            for parameter, values, gradient in zip(own, stacked, gradients, strict=True):
                parameter.data, parameter.grad = values, gradient
            self.parameters[name] = stacked.requires_grad_()
            self.parameters[name].grad = gradients
        self._own = [[(p, p.grad) for p in model.parameters() if p.grad is not None] for model in self.models]

    def _differing(self, objectives: Sequence[FlatObjective]) -> dict[str, Tensor]:
        """Weights with more than one value, [N] each.

        Raises:
            ValueError: the objectives differ in something that is not among their batched weights.
        """
        device = next(self.models[0].parameters()).device
        weights: dict[str, Tensor] = {}
        for name, value in vars(self.objective).items():
            values = [vars(objective)[name] for objective in objectives]
            if not isinstance(value, _PLAIN) or all(other == value for other in values):
                continue
            if name not in self.objective.batched:
                raise ValueError(
                    f"the models of one batched run differ in {name} ({values}); train them one by one, "
                    f"or let them differ only in {', '.join(self.objective.batched) or 'their seeds'}"
                )
            weights[name] = torch.tensor([float(other) for other in values], device=device)
        return weights

    def __len__(self) -> int:
        return len(self.models)

    def __call__(self, x: Tensor, step: int, noise: Sequence[Tensor]) -> Loss:
        """Loss of each model on its own images ``[N, B, C, H, W]`` with its own noise ``[N, B, ...]``.

        All parts of the result have a leading dimension N. Differentiate ``total.sum()``.
        """

        def one(parameters: dict[str, Tensor], weights: dict[str, Tensor], x: Tensor, noise: list[Tensor]) -> Any:
            def model(x: Tensor, noise: Sequence[Tensor] | None = None, view: View | None = None) -> VAEOutput:
                output: VAEOutput = functional_call(self.models[0], parameters, (x, noise, view))
                return output

            objective: Any = copy.copy(self.objective)
            vars(objective).update(weights)
            loss: Loss = objective(model, x, step, noise)
            return loss.total, loss.terms, loss.kl_per_group

        return Loss(*torch.vmap(one)(self.parameters, self.weights, x, list(noise)))

    def _all_gradients(self) -> list[Tensor]:
        return [stack.grad for stack in self.parameters.values() if stack.grad is not None]

    def grad_norms(self) -> Tensor:
        """Norm of the gradient of each model, [N]."""
        of_tensors = torch._foreach_norm([gradient for pairs in self._own for _, gradient in pairs])
        norms: Tensor = torch.linalg.vector_norm(torch.stack(of_tensors).view(len(self), -1), dim=1)
        return norms

    def scale_gradients(self, factors: Tensor) -> None:
        """Multiply each model's gradient by its factor, [N]."""
        for gradient in self._all_gradients():
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        torch._foreach_zero_(self._all_gradients())

    @contextlib.contextmanager
    def holding(self, held: Sequence[bool]) -> Iterator[None]:
        """Hide the gradients of the models that are ``held``, so that an optimiser does not move them."""
        hidden = [pair for pairs, is_held in zip(self._own, held, strict=True) if is_held for pair in pairs]
        for parameter, _ in hidden:
            parameter.grad = None
        yield
        for parameter, gradient in hidden:
            parameter.grad = gradient
