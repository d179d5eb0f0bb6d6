"""Faults of machines and schedulers, each with real processes: what is lost, who is named, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.console import errors
from launch.results.run import open_run
from launch.training import checkpoint
from launch.training import step as stepping
from tests.conftest import ROOT
from tests.launch import forking, running
from tests.launch.running import (
    assert_same_run,
    call,
    environment,
    finish,
    flags,
    free_port,
    records,
    start,
    wait_for,
)

TRAIN = ROOT / "launch" / "train_nvae.py"
ENDLESS = ["--max-steps", "100000", "--eval-every", "100000"]
FIXTURE = ROOT / "tests" / "fixtures" / "run-format-1"


# --- Ranks that are lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)])
def test_a_hung_or_dead_rank_ends_the_run_and_is_named(fault: signal.Signals, data: Path, tmp_path: Path) -> None:
    """A stopped process imitates one that waits for a dead file system or GPU: it exists, but does nothing."""
    run = tmp_path / "run"
    arguments = flags(data, run, *ENDLESS, "--timeout-minutes", "0.1", "--log-every", "100", batch=2)
    with running.ranks(2, TRAIN, *arguments) as (first, second):
        wait_for((run / "checkpoints" / "step-000000003.pt").exists, first)
        second.send_signal(fault)
        said = finish(first)
        assert said.code == errors.EXIT_LOST_RANK, said.err
        assert "error: rank 1 hangs, died or cannot be reached" in said.err
        assert "--resume auto" in said.err
        assert "Traceback" not in said.err
    assert next(checkpoint.newest_valid(run / "checkpoints", pytest.fail))[1]["step"] >= 3


@pytest.mark.parametrize(("script", "more"), [("evaluate", ["--images", "4"]), ("score", ["--images", "8"])])
def test_the_readers_of_runs_name_a_lost_rank_too(script: str, more: list[str], copied: Path) -> None:
    worker = ROOT / "tests" / "launch" / "stopped_worker.py"
    arguments = [script, "--run", copied, *more, "--split", "train", "--timeout-minutes", "0.1"]
    with running.ranks(2, worker, *arguments) as (first, _):
        said = finish(first)
    assert said.code == errors.EXIT_LOST_RANK, said.err
    assert "error: rank 1 hangs, died or cannot be reached" in said.err
    assert "start it again" in said.err
    assert "--resume" not in said.err
    assert "Traceback" not in said.err


def test_a_rank_that_never_comes_is_reported(data: Path, tmp_path: Path) -> None:
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "RANK": "0"}
    command = [str(TRAIN), *flags(data, tmp_path / "run", "--timeout-minutes", "0.03", batch=2)]
    said = finish(forking.Process(command, environment() | alone))
    assert said.code == errors.EXIT_BAD_INPUT, said.err
    assert "2 processes" in said.err
    assert "0.03 minutes" in said.err
    assert "Traceback" not in said.err


def test_nan_on_one_rank_for_too_long_stops_all_with_a_diagnosis(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    worker = ROOT / "tests" / "launch" / "faults_worker.py"
    with running.ranks(2, worker, *flags(data, run, "--max-bad-steps", "3", batch=2)) as ranks:
        said = [finish(rank) for rank in ranks]
    assert [s.code for s in said] == [errors.EXIT_DIVERGED] * 2, said
    assert "error: 3 steps in a row were not finite, up to step 8" in said[0].err
    assert "Traceback" not in said[0].err + said[1].err
    diagnosis = json.loads((run / "diverged.json").read_text())
    assert [rank["loss"] is None for rank in diagnosis["ranks"]] == [False, True]
    assert [len(rank["indices"]) for rank in diagnosis["ranks"]] == [2, 2]
    assert diagnosis["last_good_checkpoint"] == "step-000000003.pt", (
        "step 6 was not finite, so its weights are not kept"
    )
    model = checkpoint.load(run / "checkpoints" / "step-000000003.pt")["model"]
    assert all(bool(v.isfinite().all()) for v in model.values() if v.is_floating_point())


def test_two_machines_are_two_agents(data: Path, trained: Path, tmp_path: Path) -> None:
    """Two torchruns rendezvous through c10d, as on two machines; the steps equal those of one process."""
    run, meeting = tmp_path / "run", f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=strata"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", "--local-addr=127.0.0.1", str(TRAIN)]
    command += flags(data, run, "--stop-at-step", "4", batch=2)
    agents = [
        subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        said = [agent.communicate(timeout=200)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert checkpoint.load(run / "checkpoints" / "step-000000004.pt")["world_size"] == 2
    ours, theirs = (
        [line["train/loss"] for line in records(path) if "train/loss" in line][:4] for path in (run, trained)
    )
    assert ours == pytest.approx(theirs, rel=5e-5)


# --- SIGTERM at awkward moments --------------------------------------------------------------------------------------


def copies(root: Path, counts: dict[str, int], height: int, width: int) -> Path:
    """A folder of hard links to one image; a larger image takes longer to decode."""
    root.mkdir()
    one = root / "one"
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(one, format="png", compress_level=1)
    for split, count in counts.items():
        (root / split).mkdir()
        for i in range(count):
            os.link(one, root / split / f"{i}.png")
    one.unlink()
    return root


def test_sigterm_to_both_ranks_in_an_evaluation(tmp_path: Path) -> None:
    data = copies(tmp_path / "data", {"train": 8, "valid": 3000}, 12, 16)
    run = tmp_path / "run"
    more = ["--max-steps", "100", "--eval-every", "3", "--eval-images", "3000", "--eval-batch-size", "16"]
    with running.ranks(2, TRAIN, *flags(data, run, *more, batch=2)) as ranks:
        wait_for((run / "checkpoints" / "step-000000003.pt").exists, ranks[0])
        time.sleep(0.2)
        for rank in ranks:
            rank.terminate()
        said = [finish(rank) for rank in ranks]
    assert [s.code for s in said] == [errors.EXIT_PREEMPTED] * 2, said
    assert "stopped on request at step 3, checkpoint saved" in said[0].err
    assert (run / "preempted").read_text() == "3\n"
    assert not any("val/elbo" in line for line in records(run))
    assert not list(run.rglob("*.tmp"))


def test_sigterm_to_both_ranks_while_the_cache_is_built(tmp_path: Path) -> None:
    """Rank 0 decodes, rank 1 waits for it: both end at once, and no half-built cache is left."""
    data, run = copies(tmp_path / "data", {"train": 400, "valid": 8}, 500, 600), tmp_path / "run"
    arguments = flags(data, run, "--image-size", "12", "16", batch=2)
    with running.ranks(2, TRAIN, *arguments) as ranks:
        wait_for(lambda: any(data.rglob("*.npy.tmp")), ranks[0])
        for rank in ranks:
            rank.terminate()
        said = [finish(rank) for rank in ranks]
    assert [s.code for s in said] == [errors.EXIT_PREEMPTED] * 2, said
    assert "stopped on request before the first step" in said[0].err
    assert "Traceback" not in said[0].err + said[1].err
    assert not list(data.rglob("*.npy*"))
    assert not run.exists()


def test_sigterm_in_the_first_step(data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step chooses kernels and compiles, which takes long; it is completed, then everything is saved."""
    real = stepping.Trainer._accumulate

    def accumulate(self: stepping.Trainer, *drawn: Any) -> Any:
        if self.state.step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *drawn)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(stepping.Trainer, "_accumulate", accumulate)
        result = call("train_nvae", *flags(data, run))
    assert result.code == errors.EXIT_PREEMPTED, result.err
    assert "checkpoint saved" in result.err
    assert int((run / "preempted").read_text()) <= 2, "the ranks agree in the step that follows"
    assert call("train_nvae", *flags(data, run, "--resume", "auto")).code == 0
    assert_same_run(run, trained)


def test_a_library_that_drops_exceptions_does_not_drop_the_stop() -> None:
    """tqdm dropped the stop if the signal came while it started its thread, and all data were decoded."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        errors.StopRequest()
        with pytest.raises(errors.Preempted), contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# --- Two at once -----------------------------------------------------------------------------------------------------


def test_of_two_runs_on_one_folder_one_wins_and_its_lock_dies_with_it(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    both = [start("train_nvae", *flags(data, run, *ENDLESS, "--resume", "auto")) for _ in range(2)]
    try:
        deadline = time.monotonic() + 120.0
        while all(process.poll() is None for process in both) and time.monotonic() < deadline:
            time.sleep(0.01)
        (winner,) = [process for process in both if process.poll() is None]
        (loser,) = [process for process in both if process is not winner]
        wait_for((run / "checkpoints" / "step-000000003.pt").exists, winner)
        said = finish(loser)
        running.assert_one_error(said, "another process is training", "choose another --run-dir")
        winner.kill()
        winner.communicate()
    finally:
        for process in both:
            process.kill()
            process.communicate()
    newest = int(checkpoint.find(run / "checkpoints")[0].stem[5:])
    more = ["--max-steps", "100000", "--eval-every", "100000", "--stop-at-step", str(newest + 1)]
    again = call("train_nvae", *flags(data, run, *more, "--resume", "auto"))
    assert again.code == 0, again.err
    assert f"at step {newest}" in again.err


# --- Files of earlier versions ---------------------------------------------------------------------------------------


def test_a_run_of_format_1_is_read_for_ever(tmp_path: Path) -> None:
    """Written by the first version: its configuration, checkpoint and weights must load in all later ones."""
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "run"))
    said = json.loads((FIXTURE / "expected.json").read_text())
    content = checkpoint.load(checkpoint.find(folder / "checkpoints")[0])
    assert content["format"] == 1
    for weights in ("auto", "raw"):
        run = open_run(folder, weights=weights)  # type: ignore[arg-type]
        assert run.step == said["step"]
        total = sum(float(p.double().abs().sum()) for p in run.model.parameters())
        assert total == pytest.approx(said["sum"][weights], rel=1e-12)


@pytest.mark.parametrize("part", ["config", "model", "ema", "objective", "optimizer", "global_batch"])
def test_a_checkpoint_that_lacks_a_part_is_named(part: str, copied: Path, data: Path) -> None:
    """Its checksum is right, as if another program had written it, but training from an incomplete state is refused."""
    for path in checkpoint.find(copied / "checkpoints"):
        content = checkpoint.load(path)
        del content[part]
        checkpoint.save(copied / "checkpoints", content.pop("step"), content)
    (copied / "summary.json").unlink()
    result = call("train_nvae", *flags(data, copied, "--resume", "auto"))
    running.assert_one_error(result, part, "step-000000016.pt", "remove it")


@pytest.mark.parametrize("family", [{"a": 1}, [], None, 3])
def test_a_family_that_is_not_a_name_is_refused(family: object, copied: Path) -> None:
    """Found by fuzzing: a list or an object in its place ended in a traceback."""
    record = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(record | {"family": family}))
    running.assert_one_error(call("sample", "--run", copied), "names no known model family")
