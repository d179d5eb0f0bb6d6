"""A run's folder: config.json, metrics.jsonl, TensorBoard's events, checkpoints/, figures/, summary.json.

A run may continue with other settings only where these do not affect results (``MAY_CHANGE``).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy
import torch

import datasets
from launch.console.config import SharedConfig, to_json
from launch.families import family_of
from launch.machine import files
from launch.training import checkpoint

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

    def changes(self, config: SharedConfig) -> list[str]:
        """Settings that matter and differ from those in config.json; the file itself if it can't be read."""
        try:
            saved = self.read_json("config.json")["config"]
            return changed_keys(with_defaults(saved, to_json(type(config)())), to_json(config))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return [f"config.json is damaged ({files.reason(error)})"]

    @property
    def diverged(self) -> bool:
        """True if the run stopped because too many steps in a row were not finite."""
        return (self.path / "diverged.json").exists()

    def reopen(self, step: int) -> None:
        """Rename the records of the run's end, with ``step`` in their names, because the run continues from that step.

        After a divergence, later checkpoints were passed over; they are renamed too, or else the next start would take them.
        """
        if self.diverged:
            checkpoint.reject(self.checkpoints, beyond=step)
        for name in ("diverged", "summary"):
            path = self.path / f"{name}.json"
            if path.exists():
                path.replace(self.path / f"{name}-before-step-{step}.json")

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recorded recipe of the training images; None if there is no readable record."""
        recipe = self._recorded("data", "recipe")
        return recipe if isinstance(recipe, dict) else None

    @property
    def begun_with(self) -> Path | None:
        """The recorded --init-from; None if the run began with random weights or there is no readable record."""
        run = self._recorded("config", "run")
        begun_with = run.get("init_from") if isinstance(run, dict) else None
        return Path(begun_with) if isinstance(begun_with, str) else None

    def _recorded(self, part: str, name: str) -> Any:
        """An entry of config.json; None if there is no readable record of it."""
        try:
            record = self.read_json("config.json")
        except (ValueError, OSError):
            return None
        return record[part].get(name) if isinstance(record.get(part), dict) else None

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

    def begin(self, config: SharedConfig, dataset: datasets.Dataset, global_batch: int, *, is_new: bool) -> None:
        """Write the record of a new run, which marks the folder as a run folder."""
        if is_new or not self.config_path.exists():
            data = {"name": dataset.name, "num_images": len(dataset), "recipe": dataset.recipe}
            self.write_json("config.json", record_of(config, dataset.spec, data, global_batch=global_batch))
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


# --- Settings of a record -----------------------------------------------------------------------------------------------

# Settings that may change when a run is resumed: where and how things are stored and shown, not what is computed.
MAY_CHANGE = (
    "preset",
    "run.run_dir",
    "run.resume",
    "run.init_from",
    "run.stop_at_step",
    "run.device",
    "run.data_on_device",
    "run.compile",
    "run.cuda_graph",
    "run.batch_size",  # with accumulation and the number of processes: only their product matters
    "optim.accumulation",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.max_bad_steps",
    "run.timeout_minutes",
    "log.",
    "data.data_root",
    "data.cache_dir",
    "data.download",
    "data.labels",
)


def may_change(name: str) -> bool:
    """True if the setting with this dotted name does not affect results."""
    return any(name == allowed or (allowed.endswith(".") and name.startswith(allowed)) for allowed in MAY_CHANGE)


def settings(config: SharedConfig) -> dict[str, Any]:
    """List the settings that affect results by dotted name."""

    def listed(part: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in part.items():
            name = prefix + key
            if may_change(name):
                continue
            if isinstance(value, dict):
                yield from listed(value, f"{name}.")
            else:
                yield name, value

    return dict(listed(to_json(config), ""))


def with_defaults(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Fill in the settings that an older record lacks: a newer setting's default reproduces the earlier behaviour."""
    filled = {**defaults, **saved}
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(saved.get(key), dict):
            filled[key] = with_defaults(saved[key], default)
    return filled


def changed_keys(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that matter and differ between a run's record and the present configuration, as 'key: old -> new'."""
    rows: list[str] = []
    for key in sorted(saved.keys() | now.keys()):
        name, old, new = prefix + key, saved.get(key), now.get(key)
        if may_change(name):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            rows += changed_keys(old, new, name + ".")
        elif old != new:
            rows.append(f"{name}: {old} -> {new}")
    return rows
