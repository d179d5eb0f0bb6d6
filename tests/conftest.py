"""Fixtures of all tests: one thread, fixed seeds, the folder of golden data if it exists."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers on two cores, and children inherit it

import pytest
import torch
import torch._dynamo  # before a test replaces open(), under which the first optimiser would import it

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden numbers and real images beside the project; absent on most machines."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the folder ../shared with golden data is not on this machine")
    return path
