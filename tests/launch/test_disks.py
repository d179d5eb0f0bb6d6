"""Disks that refuse writes: what is lost, what continues, and how the run ends."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.console import errors
from launch.machine import files
from launch.training import checkpoint
from tests.conftest import ROOT
from tests.launch import running
from tests.launch.running import assert_same_run, call, flags, wait_for


def test_a_quota_hit_in_the_middle_and_lifted_costs_records_only(data: Path, tmp_path: Path) -> None:
    """Every file of the process is limited to 2 KB for a while: checkpoints, figures, events, lines."""
    run, reference = tmp_path / "run", tmp_path / "reference"
    length = ["--max-steps", "60", "--eval-every", "20"]
    assert call("train_nvae", *flags(data, reference, *length)).code == 0
    command = [sys.executable, str(ROOT / "launch" / "train_nvae.py"), *map(str, flags(data, run, *length))]
    pipe = subprocess.PIPE  # a forked process of running.start writes to a file, which the quota would limit too
    process = subprocess.Popen(command, env=running.environment(), stdout=pipe, stderr=pipe, text=True)
    wait_for((run / "checkpoints" / "step-000000015.pt").exists, process)
    unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2_000, unlimited[1]))
    newest = checkpoint.find(run / "checkpoints")[0]
    assert process.stderr is not None
    words = ""
    while "warning: metrics.jsonl could not be written" not in words or "warning: the checkpoint of step" not in words:
        line = process.stderr.readline()
        assert line, words
        words += line
    assert checkpoint.load(newest)["step"] >= 15  # what was reported as saved is still good
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 0, words + rest
    assert "(File too large)" in words + rest
    assert "TensorBoard's events could not be written" in words + rest
    assert "Traceback" not in words + rest, "TensorBoard's own thread"
    assert not list(run.rglob("*.tmp"))
    running.assert_same(running.newest(run), running.newest(reference))


def test_a_folder_that_turns_read_only(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every write below the run folder with EROFS, because root may write anywhere that permissions forbid."""
    run = tmp_path / "run"
    real = os.open

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).startswith(str(run)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *more, **named)

    assert call("train_nvae", *flags(data, run, "--stop-at-step", "6")).code == 0
    before = {path.name: path.read_bytes() for path in checkpoint.find(run / "checkpoints")}
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opened)
        result = call("train_nvae", *flags(data, run, "--resume", "auto"))
    assert result.code == errors.EXIT_BAD_INPUT
    assert "Traceback" not in result.err
    assert "Read-only file system" in result.err
    assert {path.name: path.read_bytes() for path in checkpoint.find(run / "checkpoints")} == before


def test_a_run_whose_last_weights_are_on_no_disk_says_so(
    data: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save

    def save(folder: Path, step: int, *arguments: Any, **named: Any) -> Path:
        if step > 12:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return real(folder, step, *arguments, **named)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        result = call("train_nvae", *flags(data, run))
    running.assert_one_error(result, "step 16", "step 12", "make room")
    assert not (run / "summary.json").exists(), "a run without its weights is not complete"
    again = call("train_nvae", *flags(data, run, "--resume", "auto"))
    assert again.code == 0
    assert "at step 12" in again.err
    assert_same_run(run, trained)


@pytest.mark.parametrize("refused", [["step-000000016.pt"], ["step-000000006.pt", "--stop-at-step", "6"]])
def test_room_that_comes_back_by_the_end_is_used(
    refused: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last checkpoint that cannot be written is tried once more, whether the run ends or is stopped earlier."""
    real, tries = files.write_atomically, 0
    name, *more = refused

    def refuse_once(path: Path, write: Any) -> None:
        nonlocal tries
        if path.name == name and (tries := tries + 1) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, write)

    run = tmp_path / "run"
    monkeypatch.setattr(checkpoint, "write_atomically", refuse_once)
    monkeypatch.setattr(files, "write_atomically", refuse_once)
    result = call("train_nvae", *flags(data, run, *more))
    assert result.code == 0, result.err
    assert "could not be written (No space left on device)" in result.err
    assert checkpoint.find(run / "checkpoints")[0].name == name
    assert tries == 2


def test_a_stop_whose_checkpoint_is_refused_is_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.write_atomically

    def refuse(path: Path, write: Any) -> None:
        if path.name == "step-000000006.pt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, write)

    monkeypatch.setattr(checkpoint, "write_atomically", refuse)
    monkeypatch.setattr(files, "write_atomically", refuse)
    result = call("train_nvae", *flags(data, tmp_path / "run", "--stop-at-step", "6"))
    running.assert_one_error(result, "step 6", "step 3")


def test_a_refused_summary_says_what_to_do(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.write_atomically

    def refuse(path: Path, write: Any) -> None:
        if path.name == "summary.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, write)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", refuse)
        patch.setattr(files, "write_atomically", refuse)
        result = call("train_nvae", *flags(data, run))
    running.assert_one_error(result, "summary.json", "make room", "--resume auto")
    assert call("train_nvae", *flags(data, run, "--resume", "auto")).code == 0
    assert (run / "summary.json").exists()


def test_a_preemption_on_a_full_disk_ends_as_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if neither the checkpoint nor the marker can be written, the exit code allows another attempt."""
    real = files.write_atomically

    def refuse(path: Path, write: Any) -> None:
        if "step-000000005" in path.name:
            os.kill(os.getpid(), signal.SIGTERM)  # asked to stop while the disk is full
        if path.name == "preempted" or path.name >= "step-000000005":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, write)

    run = tmp_path / "run"
    monkeypatch.setattr(checkpoint, "write_atomically", refuse)
    monkeypatch.setattr(files, "write_atomically", refuse)
    result = call("train_nvae", *flags(data, run, "--checkpoint-every", "5", "--stop-at-step", "9"))
    assert result.code == errors.EXIT_PREEMPTED, result.err
    assert "No space left on device" in result.err
    assert "Traceback" not in result.err
