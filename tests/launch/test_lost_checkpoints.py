"""Nothing that a run recorded is overwritten unless a valid checkpoint explains it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.training import checkpoint
from tests.launch import running
from tests.launch.running import assert_one_error, call, flags


def resume(data: Path, run: Path, *more: str) -> running.Result:
    return call("train_nvae", *flags(data, run, "--resume", "auto", *more))


def _lose_the_checksums(run: Path) -> None:
    for path in run.rglob("*.sha256"):
        path.unlink()


def _damage_all(run: Path) -> None:
    for path in run.rglob("*.pt"):
        path.write_bytes(b"damaged")


def _move_away(run: Path) -> None:
    (run / "checkpoints").rename(run.parent / "elsewhere")


def _empty(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()


def _format_99(run: Path) -> None:
    for path in checkpoint.find(run / "checkpoints"):
        content = checkpoint.load(path)
        torch.save({**content, "format": 99}, path)
        digest = checkpoint.sha256(path)
        path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


@pytest.mark.parametrize("lose", [_lose_the_checksums, _damage_all, _move_away, _empty, _format_99])
def test_a_run_whose_checkpoints_are_lost_is_not_overwritten(
    lose: Callable[[Path], None], copied: Path, data: Path
) -> None:
    lose(copied)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    for more in ((), ("--seed", "5", "--lr", "0.5")):
        assert_one_error(resume(data, copied, *more), str(copied), "--run-dir")
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_an_unreadable_newest_checkpoint_is_passed_over(
    make: Callable[[Path], None], copied: Path, data: Path, trained: Path
) -> None:
    newest = checkpoint.find(copied / "checkpoints")[0]
    newest.unlink()
    make(newest)
    seen: list[str] = []
    path, content = next(checkpoint.newest_valid(copied / "checkpoints", seen.append))
    assert content["step"] == 15
    assert path != newest


def test_checkpoints_that_a_run_removes_meanwhile_are_looked_for_again(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listed checkpoints are deleted before they are opened, and newer ones have been written."""
    folder, real = copied / "checkpoints", checkpoint.load
    old = checkpoint.find(folder)
    content = real(old[0])

    def load(path: Path) -> dict[str, Any]:
        if path == old[0]:
            for each in old:
                each.unlink()
            checkpoint.save(folder, 17, {k: v for k, v in content.items() if k not in ("format", "step")})
        return real(path)

    monkeypatch.setattr(checkpoint, "load", load)
    seen: list[str] = []
    assert next(checkpoint.newest_valid(folder, seen.append))[1]["step"] == 17
    assert seen == []


def test_names_that_only_resemble_checkpoints_are_ignored(tmp_path: Path) -> None:
    for name in ("step-zzz.pt", "step-.pt", "step-00000001.pt", "step-000000002.pt.sha256", "x-step-000000003.pt"):
        (tmp_path / name).touch()
    for step in (4, 1_000_000_000):
        checkpoint.path_of(tmp_path, step).touch()
    assert [checkpoint.step_of(path) for path in checkpoint.find(tmp_path)] == [1_000_000_000, 4]


def test_a_run_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoint.save(tmp_path / "renamed" / "checkpoints", 1, {})
    assert not (tmp_path / "renamed").exists()


OWN = {"weight": torch.zeros(2, 3), "count": torch.zeros((), dtype=torch.int64)}


@pytest.mark.parametrize(
    "state",
    [
        *(None, [], 3, {1: torch.zeros(2, 3)}),
        *({}, {**OWN, "more": torch.zeros(1)}, {**OWN, "weight": torch.zeros(3, 2)}, {**OWN, "weight": [0.0] * 6}),
        {**OWN, "weight": torch.zeros(2, 3).to_sparse()},
        {**OWN, "weight": torch.zeros(2, 3, device="meta")},
        {**OWN, "weight": torch.zeros(2, 3, dtype=torch.int8)},
        {**OWN, "weight": torch.zeros(2, 3, dtype=torch.complex64)},
        {**OWN, "count": torch.zeros(())},
    ],
)
def test_weights_of_another_program_are_refused(state: Any) -> None:
    checkpoint.check_weights(OWN, {"weight": torch.zeros(2, 3, dtype=torch.bfloat16), "count": OWN["count"]}, "here")
    with pytest.raises(ValueError, match="here"):
        checkpoint.check_weights(OWN, state, "here")


def _misshape(content: dict[str, Any]) -> None:
    content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)


def _cut_the_optimizer(content: dict[str, Any]) -> None:
    content["optimizer"] = [1, 2]


def _lose_the_average(content: dict[str, Any]) -> None:
    content["ema"] = None


def _count_backwards(content: dict[str, Any]) -> None:
    content["num_skipped"] = -3


def _no_number(content: dict[str, Any]) -> None:
    content["num_bad_in_a_row"] = float("inf")


def _no_batch(content: dict[str, Any]) -> None:
    content["global_batch"] = "4"


@pytest.mark.parametrize(
    "change", [_misshape, _cut_the_optimizer, _lose_the_average, _count_backwards, _no_number, _no_batch]
)
def test_a_checkpoint_of_another_program_is_refused(
    change: Callable[[dict[str, Any]], None], copied: Path, data: Path
) -> None:
    path = checkpoint.find(copied / "checkpoints")[0]
    content = checkpoint.load(path)
    change(content)
    checkpoint.save(path.parent, content.pop("step"), {k: v for k, v in content.items() if k != "format"})
    assert_one_error(resume(data, copied), str(copied))


def test_a_kill_after_a_divergence_and_before_the_next_checkpoint(copied: Path, data: Path) -> None:
    """The settings that the advice changed stay changed, though no checkpoint has them yet."""
    for path in checkpoint.find(copied / "checkpoints")[:-1]:
        path.unlink()
    (copied / "diverged.json").write_text("{}")
    typed = ("--lr", "0.001", "--checkpoint-every", "9")
    assert resume(data, copied, *typed, "--stop-at-step", "13").code == 0
    checkpoint.find(copied / "checkpoints")[0].unlink()  # the kill came before it
    assert resume(data, copied, *typed, "--stop-at-step", "13").code == 0
    assert_one_error(resume(data, copied, "--stop-at-step", "14"), "optim.lr: 0.001 -> 0.01")
