"""Scored runs of a study, and the records that a report needs: small enough to publish, without weights or paths."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.machine import files
from launch.results.export import without_places
from launch.training import records
from launch.training.folder import RunFolder
from launch.training.jobs import LAUNCH, Devices, ScriptRun, fault, run_all

DIGITS = 7  # more than any report shows


@dataclass(frozen=True)
class Scoring:
    """Settings by which every run of a study is scored."""

    images: int
    elbo_images: int
    untrained: bool

    def arguments(self) -> tuple[str, ...]:
        """Flags of score.py; the same architecture untrained is a control."""
        control = ("--untrained",) if self.untrained else ()
        return ("--images", str(self.images), "--elbo-images", str(self.elbo_images), *control)


@dataclass(frozen=True)
class _ScoreRun:
    run: ScriptRun
    how: Scoring

    def __str__(self) -> str:
        return f"score {self.run}"

    def is_done(self) -> bool:
        folder = RunFolder(self.run.folder)
        if not (folder.path / "scores.json").exists():
            return False
        return not self.how.untrained or folder.read_json("scores.json")["untrained"] is not None


def score_all(runs: Sequence[ScriptRun], how: Scoring, workers: int | None) -> list[str]:
    """Score the trained runs that have no scores, several at once; return one error message per failed run."""
    devices = Devices(workers)

    def work(job: _ScoreRun) -> str | None:
        folder = job.run.folder
        log = job.run.log.with_suffix(".scores.txt")
        command = [sys.executable, str(LAUNCH / "score.py"), "--run", str(folder), *how.arguments()]
        problem = fault(devices.run(command, log), log)
        shutil.rmtree(folder / "codes", ignore_errors=True)  # encoded images: large, and quickly regenerated
        return problem

    trained = [_ScoreRun(run, how) for run in runs if run.is_done()]
    return run_all(trained, work, _ScoreRun.is_done, devices.workers, threads=True)


def store(runs: Sequence[ScriptRun], folder: Path) -> None:
    """Copy the records of each scored run that a report needs to ``folder / name``, without paths."""
    for run in runs:
        if not (run.folder / "scores.json").exists():
            continue
        target = RunFolder(folder / run.folder.name)
        target.path.mkdir(parents=True, exist_ok=True)
        record = RunFolder(run.folder).read_json("config.json")
        target.write_json("config.json", without_places(record))
        for name in ("scores.json", "summary.json"):
            content = files.read_json(run.folder / name)
            files.write_text(target.path / name, json.dumps(_shortened(content), separators=(",", ":")) + "\n")
        files.write_text(target.path / "metrics.jsonl", "".join(records.held_out(run.folder)))


def _shortened(content: Any) -> Any:
    """Round numbers to ``DIGITS`` significant digits, which halves the files."""
    if isinstance(content, dict):
        return {name: _shortened(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_shortened(value) for value in content]
    return float(f"{content:.{DIGITS}g}") if isinstance(content, float) else content


def of_runs(runs: Sequence[ScriptRun], folder: Path) -> list[Path]:
    """The existing stored folders of the runs, in their order."""
    paths = (folder / run.folder.name for run in runs)
    return [path for path in paths if (path / "scores.json").is_file()]
