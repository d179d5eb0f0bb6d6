"""Two processes (gloo) = one process with the same global batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import datasets
from launch.machine.distributed import Ranks
from launch.results.run import open_run
from launch.training import checkpoint, evaluation
from tests.conftest import ROOT
from tests.launch import running
from tests.launch.running import environment, flags, records, torchrun

TRAIN = ROOT / "launch" / "train_nvae.py"
STOP = 9


@pytest.fixture(scope="module")
def on_two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `trained` on two processes with half the batch each, up to step 9."""
    run = tmp_path_factory.mktemp("two") / "run"
    with running.ranks(2, TRAIN, *flags(data, run, "--stop-at-step", str(STOP), batch=2)) as both:
        said = [running.finish(rank, 200.0) for rank in both]
    assert [s.code for s in said] == [0, 0], said[0].err[-3000:]
    assert "2 per process x 2 process(es) x accumulation 1 = 4" in said[0].out
    assert said[1].out == ""
    return run


def losses(run: Path, tag: str = "train/loss") -> list[float]:
    return [line[tag] for line in records(run) if tag in line]


def test_two_processes_take_the_steps_of_one(on_two: Path, trained: Path) -> None:
    """Sums of float32 in another order differ by about 1e-7 of their size in the first step, and Adamax' normalised
    updates let this grow to a few 1e-5 of the loss after nine steps. A wrong slice of images, of noise, or of the batch
    statistics shows at 1e-3 or more in the second step.
    """
    one, two = losses(trained), losses(on_two)
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert two == pytest.approx(one[:STOP], rel=5e-5)
    for tag in ("train/rate", "optim/grad_norm"):
        assert losses(on_two, tag)[:3] == pytest.approx(losses(trained, tag)[:3], rel=1e-3)


def test_weights_after_three_steps_are_those_of_one_process(data: Path, on_two: Path, tmp_path: Path) -> None:
    """Within 1e-4, for steps of 1e-2: a gradient that is only rounding error moves its parameter by about lr * noise / eps."""
    run = tmp_path / "one"
    assert running.call("train_nvae", *flags(data, run, "--stop-at-step", "3")).code == 0
    one, two = (checkpoint.load(path / "checkpoints" / "step-000000003.pt") for path in (run, on_two))
    start = open_run(run).new_model().state_dict()  # type: ignore[attr-defined]
    moved = 0.0
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-2
    assert two["world_size"] == 2


def test_a_run_goes_on_with_another_number_of_processes(on_two: Path, data: Path, trained: Path) -> None:
    result = running.call("train_nvae", *flags(data, on_two, "--resume", "auto"))
    assert result.code == 0, result.err
    assert f"at step {STOP}" in result.err
    assert [line["step"] for line in records(on_two)] == [line["step"] for line in records(trained)]
    assert losses(on_two) == pytest.approx(losses(trained), rel=2e-4)  # the rounding of nine steps, carried on


def test_a_fault_on_one_rank_is_a_fault_of_all(trained: Path, tmp_path: Path) -> None:
    with running.ranks(2, ROOT / "tests" / "launch" / "distributed_worker.py", trained, tmp_path) as both:
        ended = [running.finish(rank, 200.0) for rank in both]
    assert [s.code for s in ended] == [0, 0], ended
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1)]
    for said in ranks:
        assert said["skipped"] is True
        assert said["num_skipped"] == 1
        assert said["then_skipped"] is False
        assert said["stop"] is True
        assert said["weights_agree"] is True
        assert said["weights_moved"] is True
        assert said["evaluation_stopped"] is True
    run = open_run(trained)
    data = run.data("train")
    alone = evaluation.evaluate(run.model, data, Ranks(0, 1, torch.device("cpu")), batch_size=4, seed=1)
    for said in ranks:
        assert said["elbo"] == [float(v) for v in alone.elbo]


def test_bad_input_is_reported_once(data: Path, tmp_path: Path) -> None:
    result = torchrun(TRAIN, *flags(data, tmp_path / "run", "--max-stps", "4"))
    assert result.code != 0
    assert result.err.count("error: there is no flag --max-stps") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("whom", ["torchrun", "a worker"])
def test_sigterm_to_torchrun_or_a_worker_saves_and_ends_all(whom: str, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(TRAIN)]
    more = ["--max-steps", "4000", "--eval-every", "4000"]
    process = subprocess.Popen(
        [*command, *flags(data, run, *more, batch=2)], env=environment(), stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        running.wait_for((run / "checkpoints" / "step-000000003.pt").exists, process)
        workers = running.children(process.pid)
        assert len(workers) == 2
        os.kill(process.pid if whom == "torchrun" else workers[1], signal.SIGTERM)
        _, words = process.communicate(timeout=90)
    finally:
        process.kill()
    step = int((run / "preempted").read_text())
    assert step >= 3
    assert int(checkpoint.load(checkpoint.find(run / "checkpoints")[0])["step"]) == step
    assert words.count("--resume auto") == 1
    deadline = time.monotonic() + 20.0
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_killed_worker_brings_all_back_from_the_checkpoint(data: Path, tmp_path: Path) -> None:
    """torchrun --max-restarts restarts every rank; --resume auto finds the newest checkpoint."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    process = subprocess.Popen(
        [*command, "--monitor-interval=0.2", str(TRAIN), *flags(data, run, "--resume", "auto", batch=2)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        running.wait_for((run / "checkpoints" / "step-000000003.pt").exists, process)
        os.kill(running.children(process.pid)[1], signal.SIGKILL)
        _, words = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, words[-3000:]
    assert "resumed from" in words
    assert [line["step"] for line in records(run) if "train/loss" in line] == list(range(1, running.STEPS + 1))
    assert (run / "summary.json").exists()


def test_the_data_is_decoded_once(on_two: Path, data: Path) -> None:
    assert len(list(data.rglob("*.npy"))) == 1
    assert len(datasets.open_dataset("folder", data, "train")) == running.COUNTS["train"]
