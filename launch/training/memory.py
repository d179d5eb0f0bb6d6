"""Memory of a training step, counted on torch's meta device without computing anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import datasets
from launch.families import family_of
from metrics.elbo import terms

GIB = 2.0**30
STATE_COPIES = 5  # weights, gradients, two moments of the optimiser, averaged weights; fp32


@dataclass(frozen=True)
class StepMemory:
    """Memory in bytes: a lower bound, because work space and fragmentation are not counted."""

    num_parameters: int
    state_bytes: int
    activation_bytes_per_image: int

    def step_gib(self, batch_size: int) -> float:
        """GiB of a step on ``batch_size`` images."""
        return (self.state_bytes + batch_size * self.activation_bytes_per_image) / GIB


def _storage(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, shared by its views; meta tensors have no address."""
    return int(tensor.untyped_storage()._cdata)


def _saved_bytes(config: Any, spec: datasets.ImageSpec, batch_size: int) -> tuple[int, int]:
    """(bytes saved for the backward pass that are no parameters, number of parameters) of one forward pass."""
    seen: dict[int, int] = {}
    with torch.device("meta"):
        model = family_of(config).build_model(config, spec).train()
        parameters = {_storage(p) for p in model.parameters()}
        kept: list[Tensor] = []  # alive while counting, so that no storage's identity is used twice

        def save(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in parameters and _storage(tensor) not in seen:
                kept.append(tensor)
                seen[_storage(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.rand(batch_size, spec.channels, spec.height, spec.width)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = terms(model(x), x).elbo.mean()
        del loss
    return sum(seen.values()), sum(p.numel() for p in model.parameters())


def count(config: Any, spec: datasets.ImageSpec) -> StepMemory:
    """Count the memory of a training step in fp32; the share of an image is the difference between two batch sizes."""
    two, num_parameters = _saved_bytes(config, spec, 2)
    three, _ = _saved_bytes(config, spec, 3)
    return StepMemory(num_parameters, 4 * STATE_COPIES * num_parameters, three - two)


def check_batch_norm(config: Any, spec: datasets.ImageSpec) -> None:
    """Refuse a training batch of which a batch norm would see a single value, which has no variance.

    Raises:
        ValueError: one image, and a scale of one pixel.
    """
    try:
        _saved_bytes(config, spec, 1)
    except ValueError as error:
        if "more than 1 value" not in str(error):
            raise
        raise ValueError(
            "--batch-size 1: a batch norm would see one value per channel, because the coarsest scale has one pixel; "
            "give --batch-size 2 or more, or fewer scales"
        ) from error


def with_checkpointing(config: Any) -> Any:
    """The same configuration, cells recomputed."""
    return replace(config, model=replace(config.model, checkpointing=True))


def without_checkpointing(config: Any) -> Any:
    """The same configuration, all activations kept; flat models always keep theirs."""
    if not hasattr(config.model, "checkpointing"):
        return config
    return replace(config, model=replace(config.model, checkpointing=False))
