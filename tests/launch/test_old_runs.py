"""Run folders of an older version: they resume, evaluate, score and compare with the same numbers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flat_vae import adversary
from tests.conftest import ROOT
from tests.launch import old_runs, running, toy
from tests.launch.running import call

STORED = ROOT / "tests" / "fixtures" / "runs"
FOLDERS = ["nvae", "flat", "factor", "sweep/beta-0.1-seed0", "sweep/beta-1-seed0"]
ROUNDING = 1e-4  # of one forward pass on another processor
STEPS_ROUNDING = 2e-3  # the same after eight optimiser steps


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register(monkeypatch)
    monkeypatch.setattr(adversary, "HIDDEN_UNITS", old_runs.DISCRIMINATOR_UNITS)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies that may be written to; the working directory is theirs, as it was when the runs were made."""
    shutil.copytree(STORED, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def assert_holds(new: Any, stored: Any, tolerance: float, where: str = "") -> None:
    """Assert that ``new`` has everything in ``stored``, numbers up to ``tolerance``; it may have more."""
    if isinstance(stored, dict):
        for key, value in stored.items():
            assert key in new, f"{where}.{key} is gone"
            if key == "notes":  # warnings in words: a later version may know more of them
                continue
            assert_holds(new[key], value, tolerance, f"{where}.{key}")
    elif isinstance(stored, list):
        assert len(new) == len(stored), where
        for i, (a, b) in enumerate(zip(new, stored, strict=True)):
            assert_holds(a, b, tolerance, f"{where}[{i}]")
    elif isinstance(stored, float):
        assert math.isclose(new, stored, rel_tol=tolerance, abs_tol=1e-5), f"{where}: {new} was {stored}"
    else:
        assert new == stored, where


def assert_close(new: Any, stored: Any, where: str = "") -> None:
    """The parts of two checkpoints that training changes, whatever a new program adds."""
    if isinstance(stored, torch.Tensor):
        torch.testing.assert_close(new, stored, rtol=STEPS_ROUNDING, atol=1e-4, msg=lambda text: f"{where}: {text}")
    elif isinstance(stored, dict):
        for key, value in stored.items():
            assert_close(new[key], value, f"{where}.{key}")
    elif isinstance(stored, list):
        for i, (a, b) in enumerate(zip(new, stored, strict=True)):
            assert_close(a, b, f"{where}[{i}]")
    elif isinstance(stored, float):
        assert new == pytest.approx(stored, rel=STEPS_ROUNDING), where
    else:
        assert new == stored, where


def folders_of(name: str) -> list[Path]:
    return [Path(folder) for folder in FOLDERS if folder.split("/")[0] == name]


def tear(run: Path) -> None:
    """The folder as if the run had been killed between its two checkpoints."""
    for path in run.glob(f"checkpoints/step-{old_runs.STEPS:09d}.pt*"):
        path.unlink()
    (run / "summary.json").unlink()


@pytest.mark.parametrize("name", old_runs.TRAIN)
def test_an_old_run_goes_on_as_it_would_have(name: str, runs: Path) -> None:
    script, folder, flags = old_runs.TRAIN[name]
    for run in folders_of(name):
        tear(run)
    result = call(script, *flags, "--run-dir", folder, "--resume", "auto")
    assert result.code == 0, result.err
    for run in folders_of(name):
        before = STORED / run
        assert_holds(running.records(run), running.records(before), STEPS_ROUNDING, str(run))
        assert_holds(read(run / "summary.json")["valid"], read(before / "summary.json")["valid"], STEPS_ROUNDING)
        now, then = running.newest(run), running.newest(before)
        assert now["step"] == then["step"] == old_runs.STEPS
        for part in ("model", "ema", "objective", "optimizer"):
            assert_close(now[part], then[part], f"{run}: {part}")


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_old_run_evaluates_to_the_same_numbers(folder: str, runs: Path) -> None:
    (runs / folder / "evaluation-test.json").unlink()
    result = call("evaluate", "--run", folder, *old_runs.EVALUATE)
    assert result.code == 0, result.err
    assert_holds(read(runs / folder / "evaluation-test.json"), read(STORED / folder / "evaluation-test.json"), ROUNDING)


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_old_run_scores_the_same(folder: str, runs: Path) -> None:
    (runs / folder / "scores.json").unlink()
    result = call("score", "--run", folder, *old_runs.SCORE)
    assert result.code == 0, result.err
    now, then = (read(root / folder / "scores.json") for root in (runs, STORED))
    for part in ("num_images", "code", "group_shapes", "kl_at_means", "kl_of_units", "held_out", "scores"):
        assert_holds(now[part], then[part], 1e-3, part)


def test_old_runs_compare_by_the_scores_that_they_have(runs: Path) -> None:
    """No run is left out or scored again."""
    result = call("compare", "--runs", *FOLDERS, "--out", "report", "--pictures", "0", "--no-score-missing")
    assert result.code == 0, result.err
    report = read(runs / "report" / "comparison.json")
    assert report["skipped"] == []
    (compared,) = report["sets"]
    elbo_of = {tag.split("/")[-1]: value for tag, value in report["means"].items() if "/elbo/" in tag}
    for label, (folder,) in compared["configurations"].items():
        assert elbo_of[label] == pytest.approx(read(STORED / folder / "scores.json")["held_out"]["elbo"])
    assert len(compared["configurations"]) == len(FOLDERS)


def test_an_old_sweep_is_measured_and_not_trained_again(runs: Path) -> None:
    script, folder, flags = old_runs.TRAIN["sweep"]
    shared = flags[: flags.index("--replica-betas")]
    result = call("sweep", "--values", "0.1", "1", "--seeds", "1", "--out", folder, "--script", script, "--", *shared)
    assert result.code == 0, result.err
    assert_holds(
        running.records(runs / FOLDERS[-1]), running.records(STORED / FOLDERS[-1]), 0.0
    )  # nothing was added to them
    text = (runs / folder / "results.json").read_text()
    for name in FOLDERS[-2:]:
        assert str(read(STORED / name / "summary.json")["valid"]["elbo"]) in text
