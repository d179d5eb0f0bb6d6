"""The common part of all studies: settings, runs that are trained, scored and stored once, and runs in this process.

What is stored of a run is small enough to publish, holds no weights and no paths, and suffices for a report.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import datasets
from launch.console.config import SharedConfig, at_least
from launch.machine import files
from launch.machine.distributed import Ranks
from launch.training import jobs, loop, records
from launch.training.folder import RunFolder, without_places
from launch.training.jobs import LAUNCH, Devices, ScriptRun
from launch.training.start import trainer_for
from launch.training.step import StepReport, Trainer

DIGITS = 7  # more than any report shows


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Settings common to all studies; the configuration of each study adds its runs."""

    seeds: int = 3
    """Seeds 0, 1, ... of each model."""
    out: Path = Path("studies")
    """Folder of the runs."""
    report: Path = Path("docs/studies")
    """Folder of the report."""
    workers: int | None = None
    """Number of runs at once; default one per GPU, or without a GPU one single-threaded run per core."""
    dask: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers execute the runs; they share the folders and
    this checkout."""
    report_only: bool = False
    """Only write the report, from the finished runs."""

    def __post_init__(self) -> None:
        at_least(1, self, "seeds", "workers")


def refuse(faults: Sequence[str]) -> None:
    """Raise the errors of failed runs, after everything else was done."""
    if faults:
        raise ValueError(f"{len(faults)} runs failed ({faults[0]}); correct the cause and repeat the command")


# --- Runs of the training scripts -------------------------------------------------------------------------------------


def complete(
    runs: Sequence[ScriptRun], scoring: Sequence[str], folder: Path, workers: int | None, cluster: str | None = None
) -> list[str]:
    """Train and score the missing runs, several at once, and store each in ``folder`` as soon as it is scored.

    A stored run of the same length, scored on as many images, is not missing, even if another machine trained it, so a study
    can be extended from its records alone.

    Args:
        runs: the most important first.
        scoring: flags of score.py.
        folder: folder of the stored scores.
        workers: number of runs at once; None takes one per GPU, or without a GPU one single-threaded run per core.
        cluster: address of a Dask scheduler whose workers do it instead, as for ``jobs.run_all``.

    Returns:
        One error message per failed run.
    """
    devices = Devices(workers)

    def work(run: ScriptRun) -> str | None:
        problem = None if run.is_done() else jobs.train(run, devices)
        if problem is None and not _is_scored(run.folder, scoring):
            problem = _score(run, scoring, devices)
        if problem is None:
            _store(run, folder)
        return problem

    def is_done(run: ScriptRun) -> bool:
        kept = folder / run.folder.name
        return _is_scored(kept, scoring) and files.read_json(kept / "summary.json").get("step") == run.max_steps

    return jobs.run_all(runs, work, is_done, devices.workers, threads=True, cluster=cluster)


def stored(runs: Sequence[ScriptRun], folder: Path) -> list[Path]:
    """Folders of those runs whose scores are stored in ``folder``, in their order."""
    paths = (folder / run.folder.name for run in runs)
    return [path for path in paths if (path / "scores.json").is_file()]


def _is_scored(folder: Path, scoring: Sequence[str]) -> bool:
    path = folder / "scores.json"
    if not path.exists():
        return False
    record, images = files.read_json(path), int(scoring[scoring.index("--images") + 1])
    protocol = record.get("protocol")
    is_alike = isinstance(protocol, dict) and protocol.get("images") == images
    return is_alike and ("--untrained" not in scoring or record.get("untrained") is not None)


def _score(run: ScriptRun, scoring: Sequence[str], devices: Devices) -> str | None:
    command = [sys.executable, str(LAUNCH / "score.py"), "--run", str(run.folder), *scoring]
    log = run.log.with_suffix(".scores.txt")
    problem = jobs.fault(devices.run(command, log), log)
    shutil.rmtree(run.folder / "codes", ignore_errors=True)  # encoded images: large, and quickly regenerated
    return problem


def _store(run: ScriptRun, folder: Path) -> None:
    """Copy the records that a report needs to ``folder / name``, without paths."""
    target = RunFolder(folder / run.folder.name)
    target.path.mkdir(parents=True, exist_ok=True)
    target.write_json("config.json", without_places(RunFolder(run.folder).read_json("config.json")))
    files.write_text(target.path / records.NAME, "".join(records.held_out(run.folder)))
    for name in ("summary.json", "scores.json"):  # the scores last: they say that the run is stored
        content = _shortened(files.read_json(run.folder / name))
        files.write_text(target.path / name, json.dumps(content, separators=(",", ":")) + "\n")


def _shortened(content: Any) -> Any:
    """Round numbers to ``DIGITS`` significant digits, which halves the files."""
    if isinstance(content, dict):
        return {name: _shortened(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_shortened(value) for value in content]
    return float(f"{content:.{DIGITS}g}") if isinstance(content, float) else content


# --- Runs in a process of the study, without a run folder -------------------------------------------------------------


class RecordedRun:
    """A run whose numbers are a record in ``out``, which is written last; its name is that of the file."""

    out: Path

    @property
    def record(self) -> Path:
        """Path of the record."""
        return self.out / "records" / f"{self}.json"

    @property
    def protocol(self) -> dict[str, Any]:
        """Entries that a record must hold to count."""
        raise NotImplementedError

    def is_done(self) -> bool:
        """True if there is a record made by the same protocol."""
        return self.record.exists() and self.protocol.items() <= files.read_json(self.record).items()


def train(
    config: SharedConfig, data: datasets.Dataset, ranks: Ranks, total_steps: int
) -> Iterator[tuple[Trainer, StepReport]]:
    """Train in this process; yield the trainer and the report of every step after it was taken."""
    torch.manual_seed(config.run.seed)
    trainer = trainer_for(config, data, ranks, total_steps)
    order = datasets.Batches(len(data), config.run.batch_size, config.run.seed)
    kept = loop.keep_on_device(config.run, data, ranks.device)
    pin = ranks.device.type == "cuda"
    with datasets.Loader(data, order, 0, total_steps, pin_memory=pin, resident=kept) as batches:
        for batch in batches:
            yield trainer, trainer.train_step(batch.on(ranks.device))
