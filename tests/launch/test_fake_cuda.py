"""Training steps on fake CUDA tensors: one device, no synchronisation, and no more kernels than were counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nvae import NVAE
from nvae.batch_norm import batch_norms
from tests.launch.test_captured import MODEL, SPEC

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {
    "nvae on 1": 1292,
    "nvae on 8": 1363,
    "nvae, recomputed on 1": 1493,
    "nvae, recomputed on 8": 1522,
    "nvae, accumulated on 1": 2186,
    "nvae, accumulated on 8": 2325,
    "burgess on 1": 325,
    "burgess on 8": 328,
}
"""Kernels of one step in bf16, by the number of ranks. If there are more, find the reason; if fewer, update the number."""


def steps(*cases: str) -> dict[str, dict[str, Any]]:
    """Records by case; a step that mixes devices or that CUDA's batch norm refuses fails here."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.launch.fake_cuda_worker", *cases]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, Any]]:
    return steps(*KERNELS)


def test_the_kernels_of_a_step(recorded: dict[str, dict[str, Any]]) -> None:
    assert {case: row["kernels"] for case, row in recorded.items()} == KERNELS


def test_no_step_waits_for_the_host(recorded: dict[str, dict[str, Any]]) -> None:
    assert {case: row["waits"] for case, row in recorded.items()} == dict.fromkeys(KERNELS, 0)


def test_ranks_take_the_functions_of_cuda_and_few_kernels_more(recorded: dict[str, dict[str, Any]]) -> None:
    """Six kernels per batch norm, five without an activation, and those that exchange gradient and verdict."""
    alone, among = recorded["nvae on 1"], recorded["nvae on 8"]
    num_norms = len(batch_norms(NVAE(MODEL, SPEC)))
    assert among["operations"]["batch_norm_stats"] == among["operations"]["batch_norm_backward_elemt"] == num_norms
    assert among["kernels"] - alone["kernels"] < 6 * num_norms + 10
    again = recorded["nvae, recomputed on 8"]["operations"]
    assert again["batch_norm_stats"] == num_norms  # a recomputation exchanges nothing


def test_no_gradient_is_added_in_any_order(recorded: dict[str, dict[str, Any]]) -> None:
    """No operation uses atomic additions, whose order may differ between two equal runs."""
    for row in recorded.values():
        assert not {"upsample_bilinear2d_backward", "index_put_", "scatter_add_", "embedding_dense_backward"} & set(
            row["operations"]
        )


@pytest.mark.soak
def test_the_celeba64_recipe() -> None:
    """Batch 16 in bf16, on one GPU and on one of eight; some minutes of a core."""
    found = steps("celeba64 on 1", "celeba64 on 8")
    assert found["celeba64 on 1"]["kernels"] <= 14_000
    assert found["celeba64 on 8"]["kernels"] <= 17_000
