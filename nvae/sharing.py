"""Weights that are computed for all layers together and handed to each layer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Given(NamedTuple):
    """Parameters that a layer uses instead of its own: ``weight``, and ``bias`` unless it is None."""

    weight: Tensor
    bias: Tensor | None = None


_state = threading.local()


def weights_in_use() -> Mapping[nn.Module, Given]:
    """Weights given to the layers of this thread; a layer without an entry computes its own."""
    weights: Mapping[nn.Module, Given] = getattr(_state, "weights", {})
    return weights


def given(layer: nn.Module) -> Given | None:
    """Weight given to ``layer``; None in compiled code, because all layers of a kind share that code."""
    return None if torch.compiler.is_compiling() else weights_in_use().get(layer)


@contextmanager
def use_weights(weights: Mapping[nn.Module, Given]) -> Iterator[None]:
    """Context in which the layers in ``weights`` use these weights."""
    before = weights_in_use()
    _state.weights = weights
    try:
        yield
    finally:
        _state.weights = before
