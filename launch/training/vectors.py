"""Flat storage: weights, gradients and moments are one vector each, so that an optimiser step takes few operations.

A model's parameters and an optimiser's moments become views of these vectors. Their names and checkpoints do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# numbers per exchange between ranks; fixed, so that the order of summation does not depend on the run's history
CHUNK = 2**23
MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adamax: ("exp_avg", "exp_inf"),
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.RMSprop: ("square_avg",),
}


def memory_order(tensor: Tensor) -> Tensor:
    """View a dense tensor of any memory layout as a vector of its elements."""
    return tensor.as_strided((tensor.numel(),), (1,))


class Vector:
    """A vector that stores several tensors, each with its own shape and layout.

    Args:
        tensors: dense, of one type; they keep their values and become views of the vector.
        device: device of the tensors, if there are any.
    """

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        self.tensors = list(tensors)
        sizes = [t.numel() for t in self.tensors]
        dtype = self.tensors[0].dtype if self.tensors else torch.float32
        self.values = torch.zeros(sum(sizes), dtype=dtype, device=device)
        self.parts = list(self.values.split(sizes))
        for tensor, part in zip(self.tensors, self.parts, strict=True):
            part.copy_(memory_order(tensor.detach()))
            self.become(tensor, self._shaped(part, tensor))

    @staticmethod
    def become(tensor: Tensor, view: Tensor) -> None:
        """Move a tensor in place to the memory of ``view``, so that all references to it use the new memory."""
        tensor.data = view

    @staticmethod
    def _shaped(part: Tensor, like: Tensor) -> Tensor:
        return part.as_strided(like.shape, like.stride())

    def like(self) -> list[Tensor]:
        """Views of a new zero vector with the shapes and layouts of these tensors; the vector is their base."""
        other = torch.zeros_like(self.values).split([len(part) for part in self.parts])
        return [self._shaped(part, tensor) for part, tensor in zip(other, self.tensors, strict=True)]

    @property
    def holds(self) -> bool:
        """True if the tensors still share the vector's memory; those of a copied model or a loaded optimiser do not."""
        home = self.values.untyped_storage()._cdata
        return all(t.untyped_storage()._cdata == home for t in (*self.tensors[:1], *self.tensors[-1:]))


class FlatState:
    """Weights, gradients, moments, averaged weights and statistics of a training run as vectors.

    Args:
        model: model whose parameters and floating-point buffers become views.
        optimizer: if it is of a kind in :data:`MOMENTS`, its state becomes views. Any other takes its own steps, on
            gradients that are views.
        average: the averaged model, or None.
        world_size: number of ranks, which start from rank 0's weights.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None, world_size: int
    ) -> None:
        self.optimizer, self.world_size = optimizer, world_size
        device = next(model.parameters()).device
        self.weights = Vector(model.parameters(), device)
        self.statistics = Vector((b for b in model.buffers() if b.is_floating_point()), device)
        self.average = None if average is None else Vector(average.parameters(), device)
        self.gradient = torch.zeros_like(self.weights.values)
        self._parts = list(self.gradient.split([len(part) for part in self.weights.parts]))
        self.moments = self._adopt_moments()
        if world_size > 1:
            for vector in (self.weights, self.statistics):
                dist.broadcast(vector.values, 0)

    @property
    def updates(self) -> bool:
        """True if this class applies the update rule itself, instead of calling the optimiser's ``step``."""
        return type(self.optimizer) in MOMENTS

    @property
    def settings(self) -> dict[str, Any]:
        """The optimiser's settings; all parameters are in one group."""
        return self.optimizer.param_groups[0]

    @property
    def holds(self) -> bool:
        """True if everything still lies in the vectors."""
        vectors = [self.weights, self.statistics, *([] if self.average is None else [self.average])]
        if not all(vector.holds for vector in vectors):
            return False
        step = self.optimizer.state.get(self.weights.tensors[0], {}).get("step") if self.updates else self.steps
        return isinstance(step, Tensor) and step.untyped_storage()._cdata == self.steps.untyped_storage()._cdata

    def _adopt_moments(self) -> dict[str, Tensor]:
        """The optimiser's state by name; missing state starts at zero."""
        parameters = self.weights.tensors
        # one counter per parameter, as in the optimiser; only the first is read
        self.steps = torch.zeros(len(parameters), device=self.weights.values.device)
        if not self.updates:
            return {}
        before = [dict(self.optimizer.state.get(parameter, {})) for parameter in parameters]
        for parameter, step, state in zip(parameters, self.steps, before, strict=True):
            if "step" in state:
                step.copy_(state["step"])
            self.optimizer.state[parameter] = {"step": step}
        moments = {}
        for name in MOMENTS[type(self.optimizer)]:
            views = self.weights.like()
            for parameter, view, state in zip(parameters, views, before, strict=True):
                if name in state:
                    view.copy_(state[name])
                self.optimizer.state[parameter][name] = view
            base = views[0]._base
            assert base is not None
            moments[name] = base
        return moments

    @torch.no_grad()
    def collect(self, *, first: bool) -> None:
        """Move the parameters' gradients into the vector, or add them to it; a missing gradient counts as zero."""
        pairs = [(p, part) for p, part in zip(self.weights.tensors, self._parts, strict=True) if p.grad is not None]
        grads = [self._in_layout_of(p) for p, _ in pairs]
        if first and len(pairs) == len(self._parts):
            torch.cat(grads, out=self.gradient)
        elif first:
            self.gradient.zero_()
        if grads and not (first and len(pairs) == len(self._parts)):
            torch._foreach_add_([part for _, part in pairs], grads)
        for parameter, _ in pairs:
            parameter.grad = None

    @staticmethod
    def _in_layout_of(parameter: Tensor) -> Tensor:
        """The parameter's gradient as a vector in the order of its memory."""
        grad = parameter.grad
        assert grad is not None
        same = all(
            size == 1 or mine == theirs
            for size, mine, theirs in zip(grad.shape, grad.stride(), parameter.stride(), strict=True)
        )
        return memory_order(grad if same else torch.empty_like(parameter).copy_(grad))

    @torch.no_grad()
    def average_over_ranks(self) -> None:
        """Average the gradients of all ranks, in chunks that are the same in every step and after every resume."""
        if self.world_size > 1:
            for chunk in self.gradient.split(CHUNK):
                dist.all_reduce(chunk)
            self.gradient.div_(self.world_size)

    @torch.no_grad()
    def move(self, lr: Tensor, takes: Tensor, ema_weight: Tensor | None) -> None:
        """Step the weights and their average; if ``takes`` is 0, neither changes.

        Args:
            lr: learning rate, a 0-dimensional tensor.
            takes: 1, or 0 for a skipped step, whose gradient may hold any values.
            ema_weight: weight of the new weights in the average.
        """
        kind = self.weights.values.dtype
        lr, takes = lr.to(kind), takes.to(kind)
        self.gradient.masked_fill_(takes == 0.0, 0.0)
        self.steps.add_(takes)
        RULES[type(self.optimizer)](self, lr * takes, takes)
        if self.average is not None and ema_weight is not None:
            self.average.values.lerp_(self.weights.values, ema_weight.to(kind) * takes)

    def move_by_optimizer(self, ema_weight: float | None) -> None:
        """The same as :meth:`move`, by the optimiser's own ``step``."""
        for parameter, part in zip(self.weights.tensors, self._parts, strict=True):
            parameter.grad = part.as_strided(parameter.shape, parameter.stride())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None and ema_weight is not None:
            with torch.no_grad():
                self.average.values.lerp_(self.weights.values, ema_weight)


Rule = Callable[[FlatState, Tensor, Tensor], None]
"""An optimiser's update of the vectors, by the learning rate (0 if the step is skipped) and 1 or 0 for a step taken or
skipped; it may overwrite the gradient."""


def _decay(flat: FlatState) -> None:
    """Add the gradient of the L2 penalty."""
    if flat.settings["weight_decay"]:
        flat.gradient.add_(flat.weights.values, alpha=flat.settings["weight_decay"])


def _adamax(flat: FlatState, lr: Tensor, takes: Tensor) -> None:
    """Adamax as in ``torch.optim``: epsilon inside the infinity norm, L2 weight decay (Kingma & Ba 2014)."""
    weights, gradient, moments, group = flat.weights.values, flat.gradient, flat.moments, flat.settings
    (beta1, beta2), steps = group["betas"], flat.steps[0].double()
    _decay(flat)
    moments["exp_avg"].lerp_(gradient, (1.0 - beta1) * takes)
    largest = torch.maximum(moments["exp_inf"] * beta2, gradient.abs_().add_(group["eps"]))
    moments["exp_inf"].lerp_(largest, takes)
    rate = -lr / (1.0 - beta1**steps).clamp_min(1.0 - beta1)  # a skipped first step would divide by zero
    weights.addcmul_(torch.div(moments["exp_avg"], largest, out=gradient), rate.to(weights.dtype))


def _adam(flat: FlatState, lr: Tensor, takes: Tensor) -> None:
    """Adam with L2 weight decay, or AdamW, whose weight decay is decoupled (Kingma & Ba 2014; Loshchilov & Hutter 2019)."""
    weights, gradient, moments, group = flat.weights.values, flat.gradient, flat.moments, flat.settings
    (beta1, beta2), steps = group["betas"], flat.steps[0].double()
    if group["decoupled_weight_decay"]:
        weights.mul_(1.0 - lr * group["weight_decay"])
    else:
        _decay(flat)
    moments["exp_avg"].lerp_(gradient, (1.0 - beta1) * takes)
    moments["exp_avg_sq"].lerp_(gradient.square_(), (1.0 - beta2) * takes)
    first, second = ((1.0 - beta**steps).clamp_min(1.0 - beta) for beta in (beta1, beta2))
    std = torch.sqrt(moments["exp_avg_sq"], out=gradient).div_(second.sqrt().to(weights.dtype)).add_(group["eps"])
    weights.addcmul_(torch.div(moments["exp_avg"], std, out=gradient), (-lr / first).to(weights.dtype))


def _rmsprop(flat: FlatState, lr: Tensor, takes: Tensor) -> None:
    """RMSprop with epsilon outside the root (Tieleman & Hinton 2012)."""
    gradient, average, group = flat.gradient, flat.moments["square_avg"], flat.settings
    _decay(flat)
    average.lerp_(gradient.square(), (1.0 - group["alpha"]) * takes)
    flat.weights.values.addcmul_(gradient.div_(average.sqrt().add_(group["eps"])), -lr)


RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.Adamax: _adamax,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.RMSprop: _rmsprop,
}
