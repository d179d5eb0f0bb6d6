"""Runs that continue: after a divergence with other settings, longer than planned, from another run's weights."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.console import errors
from launch.console.config import RunConfig, SharedConfig
from launch.machine.distributed import Ranks
from launch.training import checkpoint, resume
from launch.training.step import Trainer
from tests.launch import running, toy
from tests.launch.running import call

LENGTH = ["--max-steps", "12", "--checkpoint-every", "2", "--eval-every", "99", "--log-every", "1", "--iw-samples", "2"]
FLAGS = ["--dataset", "toy", "--preset", "tiny", "--batch-size", "8", "--figure-images", "4", "--ema-decay", "0.9"]


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register(monkeypatch)


def train(run: Path, *more: object) -> running.Result:
    return call("train_flat_vae", *FLAGS, *LENGTH, "--run-dir", run, *more)


def break_steps(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Make the losses of steps from ``first`` on NaN."""
    real = Trainer.noise

    def noise(self: Trainer) -> list[torch.Tensor]:
        drawn = real(self)
        return [d * float("nan") for d in drawn] if self.state.step >= first else drawn

    monkeypatch.setattr(Trainer, "noise", noise)


def steps(run: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in checkpoint.find(run / "checkpoints"))


def scored_at(run: Path) -> list[int]:
    return [record["step"] for record in running.records(run) if any(name.startswith("score/") for name in record)]


def config(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "config.json").read_text())["config"]
    return found


def test_a_diverged_run_goes_on_with_the_printed_advice_from_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        break_steps(patch, 5)
        result = train(run, "--max-bad-steps", "6", "--keep-checkpoints", "2")
    assert result.code == errors.EXIT_DIVERGED
    assert all(word in result.err for word in ("--resume auto", "--lr", "--grad-clip", "--precision fp32"))
    assert steps(run) == [2, 4]  # none is saved between steps that are not finite
    assert json.loads((run / "diverged.json").read_text())["last_good_checkpoint"] == "step-000000004.pt"
    refused = train(run, "--resume", "auto", "--weight-decay", "0.5")
    running.assert_one_error(refused, "optim.weight_decay", "--init-from")
    result = train(run, "--resume", "auto", "--lr", "1e-5", "--grad-clip", "1", "--precision", "fp32")
    assert result.code == 0, result.err
    assert all(word in result.err for word in ("at step 4", "optim.lr", "optim.grad_clip", "run.precision"))
    assert config(run)["optim"]["lr"] == 1e-5
    assert not (run / "diverged.json").exists()
    assert (run / "diverged-before-step-4.json").exists()
    assert train(run, "--resume", "auto", "--lr", "1e-4").code == errors.EXIT_BAD_INPUT  # no longer a diverged run


def test_a_checkpoint_that_was_passed_over_is_not_taken_later(tmp_path: Path) -> None:
    """Stopped between steps that were not finite, resumed, diverged, resumed with the advice, and stopped once more."""
    run = tmp_path / "run"
    assert train(run, "--stop-at-step", "8").code == 0
    path = checkpoint.find(run / "checkpoints")[0]
    content = checkpoint.load(path) | {"num_bad_in_a_row": 2}
    checkpoint.save(path.parent, content.pop("step"), {k: v for k, v in content.items() if k != "format"}, keep=9)
    (run / "diverged.json").write_text("{}")
    advice = ["--resume", "auto", "--lr", "1e-5", "--keep-checkpoints", "9", "--checkpoint-every", "1"]
    result = train(run, *advice, "--stop-at-step", "7")
    assert result.code == 0, result.err
    assert "at step 6" in result.err
    assert steps(run)[-1] == 7
    assert [path.name for path in (run / "checkpoints").glob("*.rejected")] == ["step-000000008.pt.rejected"]
    result = train(run, *advice)
    assert result.code == 0, result.err
    assert "at step 7" in result.err


def test_a_step_that_is_divided_differently_is_announced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "--stop-at-step", "4").code == 0
    result = train(run, "--resume", "auto", "--batch-size", "4", "--accumulation", "2")
    assert result.code == 0, result.err
    assert "optim.accumulation: 1 -> 2" in result.err
    assert "forward pass" in result.err


def test_a_finished_run_is_trained_longer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run).code == 0
    assert "is complete" in train(run, "--resume", "auto").out
    result = train(run, "--resume", "auto", "--max-steps", "14")
    assert result.code == 0, result.err
    assert all(word in result.err for word in ("at step 12", "run.max_steps: 12 -> 14", "schedules"))
    assert json.loads((run / "summary.json").read_text())["step"] == 14
    assert config(run)["run"]["max_steps"] == 14
    assert "run.max_steps" in train(run, "--resume", "auto", "--max-steps", "13").err  # shorter than planned


def test_leaving_out_what_was_typed_before_makes_no_run_longer() -> None:
    def longer(saved: dict[str, Any], **now: Any) -> bool:
        return resume._is_longer({"run": saved}, SharedConfig(run=RunConfig(**now)), steps_per_epoch=10)

    assert longer({"max_steps": 14, "epochs": 90}, max_steps=15)
    assert longer({"max_steps": None, "epochs": 2}, epochs=3)
    assert longer({"max_steps": None, "epochs": 2}, max_steps=21)
    assert not longer({"max_steps": None, "epochs": 2}, max_steps=19)
    assert not longer({"max_steps": 14, "epochs": 90}, max_steps=None, epochs=90)
    assert not longer({"epochs": 90})


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert train(first).code == 0
    begun = ["--init-from", first]
    assert train(tmp_path / "begun", *begun, "--stop-at-step", "2").code == 0
    first.rename(tmp_path / "moved")
    running.assert_one_error(train(tmp_path / "d", *begun), "--init-from")
    assert not (tmp_path / "d").exists()
    assert train(tmp_path / "begun", "--resume", "auto").code == 0  # it needs the first run no more
    assert config(tmp_path / "begun")["run"]["init_from"] == str(first)
    (tmp_path / "moved").rename(first)
    for path in (tmp_path / "begun" / "checkpoints").iterdir():
        path.unlink()
    (tmp_path / "begun" / "summary.json").unlink()
    result = train(tmp_path / "begun", "--resume", "auto", "--max-steps", "2")  # killed before the first checkpoint
    assert "weights from" in result.err
    other = ["--objective", "beta", "--beta", "2", "--lr", "1e-9", "--lr-min", "0", "--max-steps", "2"]
    result = train(second, "--init-from", first, *other)
    assert result.code == 0, result.err
    assert "step-000000012.pt" in result.err
    (_, old), (_, new) = (next(checkpoint.newest_valid(run / "checkpoints", print)) for run in (first, second))
    for key, value in old["ema"].items():
        torch.testing.assert_close(new["model"][key], value, rtol=0, atol=1e-5)
        torch.testing.assert_close(new["ema"][key], value, rtol=0, atol=1e-5)
    assert new["step"] == 2
    assert "is complete" in train(second, "--resume", "auto", *other).out
    running.assert_one_error(train(tmp_path / "c", "--init-from", first, "--latent-dim", "3"), "does not fit the model")
    running.assert_one_error(train(tmp_path / "d", "--init-from", tmp_path / "nothing"), "--init-from")
    assert not (tmp_path / "c").exists()
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("more", [(), ("--replicas", "2")])
def test_a_score_that_was_due_at_a_stop_is_made_up_for(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--max-steps", "4", "--score-every", "2", *more]
    real = Trainer.settle

    def settle(self: Trainer) -> None:
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "settle", settle)
        assert train(tmp_path / "run", *asked).code == errors.EXIT_PREEMPTED
    for records in (tmp_path / "run").rglob("metrics.jsonl"):
        assert scored_at(records.parent) == [], "the stop came between the step and its score"
    assert train(tmp_path / "run", "--resume", "auto", *asked).code == 0
    found = list((tmp_path / "run").rglob("metrics.jsonl"))
    assert [scored_at(records.parent) for records in found] == [[2, 4]] * (2 if more else 1)


def test_results_that_are_not_finite_end_with_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        break_steps(patch, 0)
        skipped = train(run, "--max-steps", "2")
    assert skipped.code == errors.EXIT_DIVERGED
    assert "skipped" in skipped.err
    (path, content) = next(checkpoint.newest_valid(run / "checkpoints", print))
    content["ema"] = {key: value * float("nan") for key, value in content["ema"].items()}
    checkpoint.save(path.parent, content["step"], {k: v for k, v in content.items() if k not in ("step", "format")})
    for script, flags in {"evaluate": [], "traverse": ["--images", "4"]}.items():
        result = call(script, "--run", run, *flags)
        assert result.code == errors.EXIT_DIVERGED, script
        assert "not finite" in result.err
    scored = call("score", "--run", run, "--images", "32", "--no-untrained", "--resamples", "2", "--shuffles", "2")
    compared = call("compare", "--runs", run, "--out", tmp_path / "report", "--pictures", "0")
    assert errors.EXIT_DIVERGED in (scored.code, compared.code) or errors.EXIT_BAD_INPUT in (scored.code, compared.code)
    assert compared.code != 0


def test_a_batch_norm_of_one_value_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    run, data = tmp_path / "run", running.draw(tmp_path / "data", {"train": 4, "valid": 2}, 8, 8)
    flags = running.flags(data, run, "--num-scales", "3", "--groups-per-scale", "1", "1", "1", batch=1)
    running.assert_one_error(call("train_nvae", *flags), "--batch-size 2")
    assert not run.exists()


def test_noise_from_another_device_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    assert train(run, "--max-steps", "2").code == 0
    same = train(run, "--resume", "auto", "--max-steps", "4")
    monkeypatch.setattr(Ranks, "device_name", "another GPU")
    other = train(run, "--resume", "auto", "--max-steps", "6")
    assert (same.code, other.code) == (0, 0)
    assert "another GPU" not in same.err
    assert "cpu" not in same.err
    assert "cpu" in other.err
    assert "another GPU" in other.err
