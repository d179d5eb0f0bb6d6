"""Three and four ranks, recomputed cells, accumulation and flows: resume to the bit, and the step of one process."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.machine.distributed import Ranks
from tests.conftest import ROOT
from tests.launch import ranks_worker
from tests.launch.running import environment


def agents(num_agents: int, per_agent: int) -> list[list[str]]:
    """Commands of so many launchers, as on so many machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--master-addr", "127.0.0.1", "--master-port", str(port), "--nnodes", str(num_agents)]
    return [
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *where,
            "--node-rank",
            str(i),
            "--nproc-per-node",
            str(per_agent),
        ]
        for i in range(num_agents)
    ]


@pytest.mark.parametrize(("num_agents", "per_agent"), [(1, 3), (2, 2)])
def test_ranks_resume_exactly_and_take_the_step_of_one_process(num_agents: int, per_agent: int, tmp_path: Path) -> None:
    """Three ranks are the fewest whose sums depend on their order; four run under two launchers."""
    script = str(ROOT / "tests" / "launch" / "ranks_worker.py")
    processes = [
        subprocess.Popen(
            [*command, script, str(tmp_path)], env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for command in agents(num_agents, per_agent)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * num_agents, said[0][-2000:]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["differ"] == 0
    assert found["losses"][2:4] == found["losses"][4:6]
    assert found["same_order"]
    assert found["num_collectives"] > 100
    losses = alone(num_agents * per_agent)
    assert found["losses"][0] == pytest.approx(losses[0], rel=1e-6)
    assert found["losses"][:4] == pytest.approx(losses, rel=5e-5)


def alone(world_size: int) -> list[float]:
    """Losses of one process whose batches are those that the ranks have together."""
    ranks = Ranks(0, 1, torch.device("cpu"))
    subject = ranks_worker.trainer(ranks)
    share, parts = ranks_worker.GLOBAL_BATCH // world_size, ranks_worker.ACCUMULATION
    rows = torch.arange(ranks_worker.GLOBAL_BATCH).view(world_size, parts, share // parts).transpose(0, 1).flatten()
    losses = []
    for _ in range(4):
        drawn = [noise[rows] for noise in subject.noise()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subject, "noise", lambda drawn=drawn: drawn)
            losses.append(ranks_worker.step(subject, ranks, rows))
    return losses
