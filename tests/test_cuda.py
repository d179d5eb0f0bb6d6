"""Helpers of the CUDA tests, which must work without a GPU."""

from __future__ import annotations

import warnings

import pytest
import torch

from benchmarks.harness import waiting_for_the_device_is_an_error


def test_the_mode_warns_and_is_left_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake mode warns as PyTorch's does, and warnings are errors here."""
    modes: list[str] = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with waiting_for_the_device_is_an_error():
        assert modes == ["error"]
    assert modes == ["error", "default"]
