"""Stopped at any moment and resumed = never stopped: weights, averages, optimiser, records, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datasets
from datasets import decode, folder
from launch.console import errors
from launch.machine import files
from launch.training import checkpoint, evaluation
from tests.launch import running
from tests.launch.running import assert_same_run, call, flags, start, wait_for


def resume(data: Path, run: Path, *more: str) -> running.Result:
    return call("train_nvae", *flags(data, run, "--resume", "auto", *more))


def test_eight_and_eight_equal_sixteen(data: Path, trained: Path, tmp_path: Path) -> None:
    """The second half runs in a new process, which shares only the folder with the first."""
    run = tmp_path / "run"
    first = call("train_nvae", *flags(data, run, "--stop-at-step", "8"))
    assert first.code == 0, first.err
    assert not (run / "summary.json").exists()
    assert newest_step(run) == 8
    second = start("train_nvae", *flags(data, run, "--resume", "auto"))
    _, words = second.communicate(timeout=200)
    assert second.returncode == 0, words
    assert "resumed from" in words
    assert_same_run(run, trained)
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (run, trained))
    assert ours["valid"] == theirs["valid"]


def newest_step(run: Path) -> int:
    return int(checkpoint.load(checkpoint.find(run / "checkpoints")[0])["step"])


def test_odd_stops_make_no_difference(data: Path, trained: Path, tmp_path: Path) -> None:
    """Stops at steps where no checkpoint or evaluation is due; the middle of an epoch is one of them."""
    run = tmp_path / "run"
    for step in ("1", "5", "7"):
        assert resume(data, run, "--stop-at-step", step).code == 0
    assert resume(data, run).code == 0
    assert_same_run(run, trained)


@pytest.mark.parametrize("seed", [0, 1])
def test_kill_minus_9_at_a_random_moment(seed: int, data: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    chance = random.Random(seed)
    wait_until = run / "checkpoints" / f"step-{chance.choice([3, 6, 9]):09d}.pt"
    process = start("train_nvae", *flags(data, run))
    wait_for(wait_until.exists, process)
    time.sleep(chance.uniform(0.0, 0.03))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    result = resume(data, run)
    assert result.code == 0, result.err
    assert_same_run(run, trained)
    assert not list(run.rglob("*.tmp"))


def test_sigterm_saves_and_says_so(data: Path, trained: Path, tmp_path: Path) -> None:
    """Send the signal twice, as torchrun does to a group; the second one must not interrupt saving."""
    run = tmp_path / "run"
    process = start("train_nvae", *flags(data, run))
    wait_for((run / "checkpoints" / "step-000000003.pt").exists, process)
    process.terminate()
    process.terminate()
    _, words = process.communicate(timeout=60)
    assert process.returncode == errors.EXIT_PREEMPTED, words
    assert "--resume auto" in words
    assert "Traceback" not in words
    step = newest_step(run)
    assert int((run / "preempted").read_text()) == step
    assert 3 <= step < running.STEPS
    assert resume(data, run).code == 0
    assert not (run / "preempted").exists()
    assert_same_run(run, trained)


@pytest.mark.parametrize("which", [1, 2])
def test_sigterm_during_an_evaluation(
    which: int, data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation may take longer than the 30 s that torchrun waits: it stops at the next block."""
    run, calls = tmp_path / "run", 0
    real = evaluation.blocks

    def blocks(*arguments: Any) -> Iterator[Any]:
        nonlocal calls
        calls += 1
        if calls == which:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from real(*arguments)

    monkeypatch.setattr(evaluation, "blocks", blocks)
    result = call("train_nvae", *flags(data, run))
    assert result.code == errors.EXIT_PREEMPTED, result.err
    assert (run / "preempted").read_text() == f"{8 * which}\n"
    assert newest_step(run) == 8 * which
    assert not (run / "summary.json").exists()
    assert resume(data, run).code == 0
    assert_same_run(run, trained)


def test_killed_between_a_checkpoint_and_its_evaluation(data: Path, trained: Path, tmp_path: Path) -> None:
    """The resumed run does the evaluation that the killed one missed."""
    run = tmp_path / "run"
    assert call("train_nvae", *flags(data, run, "--stop-at-step", "8")).code == 0
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "val/elbo" in lines[-1]
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert resume(data, run).code == 0
    assert_same_run(run, trained)


def test_a_damaged_newest_checkpoint_is_passed_over(data: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call("train_nvae", *flags(data, run, "--stop-at-step", "8")).code == 0
    newest = checkpoint.find(run / "checkpoints")[0]
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(bytes(raw))
    result = resume(data, run)
    assert result.code == 0
    assert f"warning: skipped: {newest} is damaged" in result.err
    assert "resumed from" in result.err
    assert "at step 6" in result.err
    assert_same_run(run, trained)


def test_a_run_without_a_checkpoint_yet_starts_over(data: Path, trained: Path, tmp_path: Path) -> None:
    """After a kill in the first steps, or in the first write, the same command works with --resume auto."""
    run = tmp_path / "run"
    run.mkdir()
    (run / f".config.json.123{files.TEMPORARY}").write_text("{")
    (run / ".somebody-elses.tmp").write_text("precious")
    (run / ".lock").touch()
    assert resume(data, run, "--stop-at-step", "2").code == 0
    assert not list(run.glob(f".*{files.TEMPORARY}"))
    for path in (run / "checkpoints").glob("*.pt"):  # the kill came after the checksum of the first one
        path.unlink()
    running.assert_one_error(resume(data, run, "--channels-enc", "3"), "model.channels_enc: 4 -> 3")
    assert resume(data, run).code == 0
    assert_same_run(run, trained)
    assert (run / ".somebody-elses.tmp").read_text() == "precious"


def test_a_complete_run_is_left_as_it_is(copied: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file() and path.name != ".lock"}
    result = resume(data, copied)
    assert result.code == 0
    assert "is complete" in result.out
    after = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--lr", "0.5"), "optim.lr: 0.01 -> 0.5"),
        (("--max-steps", "99", "--seed", "4"), "run.max_steps: 16 -> 99, run.seed: 0 -> 4"),
        (("--channels-dec", "5"), "model.channels_dec: 4 -> 5"),
        (("--batch-size", "8"), "global batch of 4 images, these flags make 8"),
    ],
)
def test_other_settings_are_named_and_nothing_is_touched(
    more: tuple[str, ...], words: str, copied: Path, data: Path
) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    running.assert_one_error(resume(data, copied, *more), words)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_other_data_is_noticed(copied: Path, tmp_path: Path) -> None:
    fewer = running.draw(tmp_path / "fewer", {"train": 17, "valid": 5, "test": 7})
    running.assert_one_error(resume(fewer, copied), "was trained on 18 images, now there are 17")


def test_the_same_global_batch_by_accumulation_may_go_on(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call("train_nvae", *flags(data, run, "--stop-at-step", "3")).code == 0
    result = resume(data, run, "--batch-size", "2", "--accumulation", "2")
    assert result.code == 0, result.err
    lines = [line for line in running.records(run) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 17))


def test_ranks_share_one_order_of_images() -> None:
    """Whatever the number of ranks, the global batches are the same, every image once an epoch."""
    alone = datasets.Batches(18, 4, seed=3)
    for step in range(10):
        epoch, whole = alone.indices(step)
        for ranks in (2, 4):
            parts = [datasets.Batches(18, 4, 3, rank, ranks).indices(step) for rank in range(ranks)]
            assert {e for e, _ in parts} == {epoch}
            assert np.array_equal(np.concatenate([p for _, p in parts]), whole)
    for epoch in range(2):
        seen = np.concatenate([alone.indices(4 * epoch + i)[1] for i in range(4)])
        assert len(set(seen.tolist())) == 16


def test_a_second_interrupt_of_the_user_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = errors.StopRequest()
        with pytest.raises(errors.Preempted, match="before the first step"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.asked
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun's copy
        assert stop.asked
        later = time.monotonic() + 2 * errors.INSISTENCE_SECONDS
        monkeypatch.setattr(time, "monotonic", lambda: later)
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler may repeat itself
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_sigterm_while_the_data_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to save yet: the process ends at once, leaves no half-written cache, and the same command works."""
    data, run = running.draw(tmp_path / "data"), tmp_path / "run"
    real = decode.crop_and_resize

    def stop(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "crop_and_resize", stop)
        result = call("train_nvae", *flags(data, run))
    assert result.code == errors.EXIT_PREEMPTED, result.err
    assert "before the first step" in result.err
    assert not run.exists()
    assert not list(data.rglob("*.npy*"))
    assert call("train_nvae", *flags(data, run, "--max-steps", "1")).code == 0
