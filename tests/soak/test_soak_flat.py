"""In a long run, memory, open files and bytes per step do not grow; a month of records can still be opened."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.training.records import Monitor
from tests.launch import running

STEPS = int(os.environ.get("STRATA_SOAK_STEPS", "5000"))
MIB = 2**20
MONTH_OF_RECORDS = 30 * 24 * 3600 // 50  # a step a second, a record every 50 steps


def _look(pid: int, run: Path) -> tuple[float, int, int]:
    """Resident memory in MiB, open files, bytes of TensorBoard's events."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return pages * os.sysconf("SC_PAGESIZE") / MIB, files, sum(p.stat().st_size for p in run.glob("events*"))


@pytest.mark.soak
def test_nothing_grows_with_the_steps(data: Path, tmp_path: Path) -> None:
    """Measure after every tenth of the run; the first three tenths may fill caches and pools."""
    run, tenth = tmp_path / "run", STEPS // 10
    length = ["--max-steps", str(STEPS), "--checkpoint-every", str(tenth // 2), "--eval-every", str(tenth)]
    process = running.start("train_nvae", *running.flags(data, run, *length, "--log-every", "50"))
    seen = []
    for number in range(1, 10):
        step = run / "checkpoints" / f"step-{number * tenth + tenth // 2:09d}.pt"
        running.wait_for(step.exists, process, 600.0)
        seen.append(_look(process.pid, run))
    _, words = process.communicate(timeout=300)
    assert process.returncode == 0, words
    print([(round(memory), files, size) for memory, files, size in seen])
    memory, files, sizes = zip(*seen, strict=True)
    assert max(memory[3:]) - memory[2] < 24.0, memory
    assert max(files[3:]) <= max(files[:3]) + 2, files  # one may be looked at while it is written
    steps = [b - a for a, b in itertools.pairwise(sizes[2:])]
    assert max(steps) < 1.2 * min(steps), "a tenth of the run writes as many bytes as any other"
    assert len(list((run / "checkpoints").glob("step-*.pt"))) == 3


@pytest.mark.soak
def test_a_month_of_records_can_be_opened_and_resumed(tmp_path: Path) -> None:
    tags = [f"train/{i}" for i in range(10)]
    with Monitor(tmp_path, active=True, total_steps=50 * MONTH_OF_RECORDS) as monitor:
        for record in range(1, MONTH_OF_RECORDS + 1):
            monitor.scalars(50 * record, dict.fromkeys(tags, float(record)))
    events = next(tmp_path.glob("events*"))
    assert events.stat().st_size < 60 * len(tags) * MONTH_OF_RECORDS
    read = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    read.Reload()
    assert len(read.Scalars(tags[0])) == MONTH_OF_RECORDS
    halfway = 50 * (MONTH_OF_RECORDS // 2)
    with Monitor(tmp_path, active=True, resume_step=halfway, total_steps=50 * MONTH_OF_RECORDS):
        pass
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == MONTH_OF_RECORDS // 2
