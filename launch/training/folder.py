"""A run's folder: config.json, metrics.jsonl, TensorBoard's events, checkpoints/, figures/, summary.json."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import numpy
import torch

import datasets
from launch.console.config import SharedConfig, to_json
from launch.families import family_of
from launch.machine import files

FORMAT = 1  # of config.json
GIT_SECONDS = 5.0


def commit() -> str | None:
    """The commit of this checkout; None if git is missing, hangs, or finds no repository."""
    command = ["git", "describe", "--always", "--dirty"]
    root = Path(__file__).resolve().parents[2]
    try:
        git = subprocess.run(
            command, cwd=root, capture_output=True, stdin=subprocess.DEVNULL, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.decode(errors="replace").strip() or None


def provenance() -> dict[str, Any]:
    """Origin of a run: command, commit, versions, hardware. It holds no paths beyond those typed."""
    cuda = torch.cuda.is_available()
    return {
        "argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "commit": commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
        "hardware": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "num_gpus": torch.cuda.device_count(),
        },
    }


class RunFolder:
    """A run's folder, locked while a run writes to it (the lock ends with its process)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.figures = path / "checkpoints", path / "figures"
        self._lock: filelock.BaseFileLock | None = None

    @property
    def config_path(self) -> Path:
        """The resolved configuration and provenance."""
        return self.path / "config.json"

    def claim(self, *, resume: bool) -> None:
        """Create the folder, or take over an existing one to resume; refuse to mix two runs.

        Raises:
            ValueError: it holds a run and ``resume`` is off, it holds something else, or another process works in it.
        """
        self.refuse_a_run(resume)
        if self.path.exists() and not self.config_path.exists():
            # hidden files are the lock and leftovers of a kill during the first write
            visible = [p.name for p in self.path.iterdir() if not p.name.startswith(".")] if self.path.is_dir() else []
            foreign = visible if self.path.is_dir() else [self.path.name]
            if foreign:
                raise ValueError(
                    f"{self.path} exists and holds no run ({foreign[0]} is there); choose another --run-dir"
                )
        lock = filelock.FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(
                f"another process is training in {self.path}; wait for it or choose another --run-dir"
            ) from None
        except OSError as error:
            raise ValueError(
                f"the run folder {self.path} can't be written ({files.reason(error)}); choose another --run-dir"
            ) from error
        self._lock = lock
        try:
            self.refuse_a_run(resume)  # again: another process may have come and gone in between
        except ValueError:
            self.release()
            raise
        files.remove_leftovers(self.path, self.checkpoints, self.figures)

    def refuse_a_run(self, resume: bool) -> None:
        """Refuse to overwrite a run, as :meth:`claim` does, without creating anything.

        Raises:
            ValueError: the folder holds a run and ``resume`` is off.
        """
        if self.config_path.exists() and not resume:
            raise ValueError(
                f"{self.path} already holds a run; add --resume auto to continue it, or choose another --run-dir"
            )

    def release(self) -> None:
        """Release the folder for other runs."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def diverged(self) -> bool:
        """True if the run stopped because too many steps in a row were not finite."""
        return (self.path / "diverged.json").exists()

    def reopen(self, step: int) -> None:
        """Rename the records of the run's end, with ``step`` in their names, because the run continues from that step."""
        for name in ("diverged", "summary"):
            path = self.path / f"{name}.json"
            if path.exists():
                path.replace(self.path / f"{name}-before-step-{step}.json")

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recorded recipe of the training images; None if there is no readable record."""
        try:
            record = self.read_json("config.json")
        except (ValueError, OSError):
            return None
        recipe = record["data"].get("recipe") if isinstance(record.get("data"), dict) else None
        return recipe if isinstance(recipe, dict) else None

    def write_json(self, name: str, content: Any) -> None:
        """Write ``name`` (JSON, atomically)."""
        files.write_text(self.path / name, json.dumps(files.plain(content), indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read ``name``, a JSON object.

        Raises:
            ValueError: it is missing, damaged or not a JSON object.
        """
        path = self.path / name
        if not path.exists():
            raise ValueError(
                f"{self.path} has no {name}, so it is not a run folder; give the folder of a run (runs/...)"
            )
        return files.read_json(path, remedy="restore it or start a new run")

    @property
    def has_summary(self) -> bool:
        """True if the run is complete."""
        return (self.path / "summary.json").exists()

    def begin(self, config: SharedConfig, dataset: datasets.Dataset, *, is_new: bool) -> None:
        """Write the record of a new run, which marks the folder as a run folder."""
        if is_new or not self.config_path.exists():
            data = {"name": dataset.name, "num_images": len(dataset), "recipe": dataset.recipe}
            self.write_json("config.json", record_of(config, dataset.spec, data))
        (self.path / "preempted").unlink(missing_ok=True)


def record_of(config: SharedConfig, spec: datasets.ImageSpec, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Content of a run's config.json: configuration, image spec, data recipe, provenance."""
    return {
        "format": FORMAT,
        "family": family_of(config).name,
        "config": to_json(config),
        "spec": {"channels": spec.channels, "height": spec.height, "width": spec.width, "num_bits": spec.num_bits},
        "data": data,
        **more,
        **provenance(),
    }


def without_places(record: dict[str, Any]) -> dict[str, Any]:
    """A run's config.json without its folders and without the command that named them, to be shared."""
    places = {"data": ("data_root", "cache_dir"), "run": ("run_dir",)}
    config = record["config"] | {part: record["config"][part] | dict.fromkeys(names) for part, names in places.items()}
    return {name: value for name, value in record.items() if name != "argv"} | {"config": config}
