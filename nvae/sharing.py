"""Weights that were computed for all layers at once and handed to each of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Given(NamedTuple):
    """What a layer computes with instead of its own: ``weight``, and ``bias`` where it is not None."""

    weight: Tensor
    bias: Tensor | None = None


_state = threading.local()


def weights_in_use() -> Mapping[nn.Module, Given]:
    """The weights that this thread's layers are given; a layer that is missing computes its own."""
    weights: Mapping[nn.Module, Given] = getattr(_state, "weights", {})
    return weights


def given(layer: nn.Module) -> Given | None:
    """What ``layer`` is given; None in compiled code, which serves all layers of a kind."""
    return None if torch.compiler.is_compiling() else weights_in_use().get(layer)


@contextmanager
def use_weights(weights: Mapping[nn.Module, Given]) -> Iterator[None]:
    """Within it the layers among ``weights`` compute with these."""
    before = weights_in_use()
    _state.weights = weights
    try:
        yield
    finally:
        _state.weights = before
