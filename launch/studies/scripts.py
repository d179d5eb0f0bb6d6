"""Runs of the training scripts, each a process of its own with its run folder, shared out over the GPUs or cores here."""

from __future__ import annotations

import os
import queue
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from launch.studies import jobs

LAUNCH = Path(__file__).resolve().parents[1]
Script = Literal["train_nvae", "train_flat_vae"]


@dataclass(frozen=True)
class ScriptRun:
    """One run of a training script: its arguments but for folder and resuming, and its folder, whose name it bears."""

    script: Script
    arguments: tuple[str, ...]
    folder: Path

    def __str__(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        """What the script said."""
        return self.folder.parent / "logs" / f"{self}.txt"

    @property
    def all_arguments(self) -> tuple[str, ...]:
        """With the folder; a stopped run is resumed."""
        return (*self.arguments, "--run-dir", str(self.folder), "--resume", "auto")

    def is_done(self) -> bool:
        """Whether its training is complete."""
        return (self.folder / "summary.json").exists()


class Devices:
    """GPUs handed out to processes, each to the one that has waited longest; without GPUs, one core each."""

    def __init__(self, workers: int | None) -> None:
        typed = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        names = typed.split(",")[:count] if typed else [str(i) for i in range(count)]
        self.workers = workers or len(names) or os.cpu_count() or 1
        self._free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for i in range(self.workers if names else 0):
            self._free.put(names[i % len(names)])
        self._has_gpus = bool(names)

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a command on the next free device with its words in ``log``; its exit code."""
        gpu = self._free.get() if self._has_gpus else None
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("w") as said:
                done = subprocess.run(command, env=environment, stdout=said, stderr=said, check=False)
        finally:
            if gpu is not None:
                self._free.put(gpu)
        return done.returncode


def train_all(runs: Sequence[ScriptRun], workers: int | None) -> list[str]:
    """Train what is not done, several at once; what went wrong, a line for each run.

    Args:
        runs: the most wanted first.
        workers: how many at once; None: one for each GPU, or without a GPU one, of one thread, for each core.
    """
    devices = Devices(workers)

    def work(run: ScriptRun) -> str | None:
        command = [sys.executable, str(LAUNCH / f"{run.script}.py"), *run.all_arguments]
        return fault(devices.run(command, run.log), run.log)

    return jobs.run_all(runs, work, ScriptRun.is_done, devices.workers, threads=True)


def fault(code: int, log: Path) -> str | None:
    """What a process that ended with ``code`` said last, in a line; None where it ended well."""
    if code == 0:
        return None
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return f"exit code {code}, {errors[-1][7:] if errors else 'no message'} (all of it: {log})"


def claim(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Note in ``folder / name`` what all its runs share; refuse a folder whose runs share something else.

    Raises:
        ValueError: the folder is another's; what it was made with is said.
    """
    path = folder / name
    if not path.exists():
        jobs.write_record(path, record)
    elif (there := jobs.read_record(path)) != record:
        different = [key for key in there.keys() | record.keys() if there.get(key) != record.get(key)]
        said = ", ".join(f"{key} {_words(there.get(key))}" for key in sorted(different))
        raise ValueError(f"{folder} was made with {said}; repeat that to go on with it, or choose another --out")


def _words(value: Any) -> str:
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)
