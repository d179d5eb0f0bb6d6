"""Two gloo processes take the step that one process takes on the whole batch."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from nvae import NVAEObjective, ObjectiveConfig
from nvae.batch_norm import BatchNorm
from tests.launch import running
from tests.launch.forking import Process
from tests.nvae.small import images, noise, small

WORLD = 2
BATCH = 6  # of both processes
CASES: dict[str, dict[str, Any]] = {
    "res_mbconv": {"num_flows": 1},
    "res_elu": {"cell_arch": "res_elu"},  # data-initialised: both must initialise alike
    "checkpointing": {"cell_arch": "res_bnswish", "checkpointing": True},
    "compiled": {"cell_arch": "res_bnswish", "num_scales": 1, "groups_per_scale": (1,)},  # on two processes
}


def step(case: str, rank: int, world: int) -> dict[str, Any]:
    """Loss, gradients and buffers of one training step on this rank's share."""
    model = small(**CASES[case]).train()
    if case == "compiled" and world > 1:
        model.compile_parts("aot_eager")
    objective = NVAEObjective(ObjectiveConfig(), model, total_steps=20)
    rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    x, eps = images(model, BATCH), noise(model, BATCH)
    called: torch.nn.Module = model
    if world > 1:
        called = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    loss = objective(called, x[rows], 2, [e[rows] for e in eps])
    loss.total.backward()
    total = loss.total.detach() / world  # each rank's is that of its own images
    if world > 1:
        dist.all_reduce(total)
    return {
        "loss": total,
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "state": model.state_dict(),
        "objective": objective.state_dict(),
    }


def norm_step(rank: int, world: int) -> dict[str, Any]:
    """One batch norm alone, with unequal shares of a batch."""
    torch.manual_seed(0)
    norm = BatchNorm(3, "silu")
    x = (torch.randn(7, 3, 4, 5) * 2 + 3).requires_grad_()
    upstream = torch.randn(7, 3, 4, 5)
    rows = slice(0, 7) if world == 1 else (slice(0, 2), slice(2, 7))[rank]
    y = norm(x[rows])
    y.backward(upstream[rows])
    assert x.grad is not None
    assert norm.weight.grad is not None
    local = [x.grad, norm.weight.grad.clone(), torch.zeros_like(x)]
    local[2][rows] = y.detach()
    if world > 1:
        for value in local:
            dist.all_reduce(value)
    return {"x": local[0], "weight": local[1], "y": local[2], "mean": norm.running_mean, "var": norm.running_var}


def main(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    found = {case: step(case, rank, WORLD) for case in CASES}
    breaks = sum(counters["graph_break"].values())
    torch.save({**found, "norm": norm_step(rank, WORLD), "breaks": breaks}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo sometimes aborts at the interpreter's exit, after all work is done


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = ["-m", "tests.nvae.test_nvae_distributed", str(folder)]
    processes = [Process([*command, str(rank)], running.environment()) for rank in range(WORLD)]
    try:
        said = [running.finish(process, 240.0) for process in processes]
    finally:
        for process in processes:  # a rank that waits for a failed one
            process.kill()
    assert [s.code for s in said] == [0] * WORLD, said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_a_training_step(case: str, ranks: list[dict[str, Any]]) -> None:
    alone = step(case, 0, 1)
    both = [rank[case] for rank in ranks]
    torch.testing.assert_close(both[0]["loss"], alone["loss"])
    for key, value in alone["objective"].items():
        torch.testing.assert_close(both[0]["objective"][key], value)
    for key, value in both[0]["state"].items():
        assert torch.equal(value, both[1]["state"][key]), key  # the ranks agree bit for bit
        torch.testing.assert_close(value, alone["state"][key], rtol=1e-4, atol=1e-5)
    largest = max(float(grad.norm()) for grad in alone["grads"].values())
    for name, grad in alone["grads"].items():
        assert float((both[0]["grads"][name] - grad).norm()) <= 1e-5 * largest, name
        assert torch.equal(both[0]["grads"][name], both[1]["grads"][name]), name


def test_compiled_cells_exchange_statistics_within_their_graphs(ranks: list[dict[str, Any]]) -> None:
    assert [rank["breaks"] for rank in ranks] == [0, 0]


def test_batch_norm_with_unequal_shares(ranks: list[dict[str, Any]]) -> None:
    alone = norm_step(0, 1)
    for key, value in alone.items():
        torch.testing.assert_close(ranks[0]["norm"][key], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(ranks[0]["norm"][key], ranks[1]["norm"][key])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
