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
from launch.training import jobs, records
from launch.training.folder import RunFolder, without_places
from launch.training.jobs import LAUNCH, Devices, ScriptRun, fault

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


def complete(
    runs: Sequence[ScriptRun], how: Scoring, folder: Path, workers: int | None, cluster: str | None = None
) -> list[str]:
    """Train and score the runs that lack it, several at once, and store each in ``folder`` as soon as it has its scores.

    Args:
        runs: the most important first.
        how: settings of the scores.
        folder: folder of the stored scores.
        workers: number of runs at once; None takes one per GPU, or without a GPU one single-threaded run per core.
        cluster: address of a Dask scheduler whose workers do it instead, as for ``jobs.run_all``.

    Returns:
        One error message per failed run.
    """
    devices = Devices(workers)

    def work(run: ScriptRun) -> str | None:
        problem = None if run.is_done() else jobs.train(run, devices)
        if problem is None and not _is_scored(run, how):
            problem = _score(run, how, devices)
        if problem is None:
            _store(run, folder)
        return problem

    def is_done(run: ScriptRun) -> bool:
        return run.is_done() and _is_scored(run, how) and (folder / run.folder.name / "scores.json").is_file()

    return jobs.run_all(runs, work, is_done, devices.workers, threads=True, cluster=cluster)


def _is_scored(run: ScriptRun, how: Scoring) -> bool:
    folder = RunFolder(run.folder)
    if not (folder.path / "scores.json").exists():
        return False
    return not how.untrained or folder.read_json("scores.json")["untrained"] is not None


def _score(run: ScriptRun, how: Scoring, devices: Devices) -> str | None:
    log = run.log.with_suffix(".scores.txt")
    command = [sys.executable, str(LAUNCH / "score.py"), "--run", str(run.folder), *how.arguments()]
    problem = fault(devices.run(command, log), log)
    shutil.rmtree(run.folder / "codes", ignore_errors=True)  # encoded images: large, and quickly regenerated
    return problem


def _store(run: ScriptRun, folder: Path) -> None:
    """Copy the records that a report needs to ``folder / name``, without paths."""
    target = RunFolder(folder / run.folder.name)
    target.path.mkdir(parents=True, exist_ok=True)
    record = RunFolder(run.folder).read_json("config.json")
    target.write_json("config.json", without_places(record))
    files.write_text(target.path / "metrics.jsonl", "".join(records.held_out(run.folder)))
    for name in ("summary.json", "scores.json"):  # the scores last: they say that the run is stored
        content = files.read_json(run.folder / name)
        files.write_text(target.path / name, json.dumps(_shortened(content), separators=(",", ":")) + "\n")


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
