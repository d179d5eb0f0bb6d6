"""Three and four ranks, recomputed cells, accumulation and flows: resume to the bit, and the step of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.machine.distributed import Ranks
from tests.conftest import ROOT
from tests.launch import ranks_worker, running


@pytest.mark.parametrize(("num_machines", "per_machine"), [(1, 3), (2, 2)])
def test_ranks_resume_exactly_and_take_the_step_of_one_process(
    num_machines: int, per_machine: int, tmp_path: Path
) -> None:
    """Three ranks are the fewest whose sums depend on their order; four run as two on each of two machines."""
    worker = ROOT / "tests" / "launch" / "ranks_worker.py"
    number = num_machines * per_machine
    with running.ranks(number, worker, tmp_path, per_machine=per_machine) as ranks:
        said = [running.finish(rank, 240.0) for rank in ranks]
    assert [s.code for s in said] == [0] * number, said[0].err[-2000:]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["differ"] == 0
    assert found["losses"][2:4] == found["losses"][4:6]
    assert found["same_order"]
    assert found["num_collectives"] > 100
    losses = alone()
    assert found["losses"][0] == pytest.approx(losses[0], rel=1e-6)
    assert found["losses"][:4] == pytest.approx(losses, rel=5e-5)


def alone() -> list[float]:
    """Losses of one process: the images and noise of every forward pass are those of all ranks."""
    ranks = Ranks(0, 1, torch.device("cpu"))
    subject = ranks_worker.trainer(ranks)
    return [ranks_worker.step(subject, ranks) for _ in range(4)]
