"""A run's folder: config.json, metrics.jsonl, TensorBoard's events, checkpoints/, figures/, summary.json."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy
import torch

import datasets
from launch import checkpoint
from launch.config import SharedConfig, from_json, to_json
from launch.families import FAMILIES, Family, family_of
from launch.model import VAE
from launch.monitor import plain

# What may differ between the runs of one folder: where and how things are kept and shown, not what is computed.
MAY_CHANGE = (
    "preset",
    "run.run_dir",
    "run.resume",
    "run.stop_at_step",
    "run.device",
    "run.data_on_device",
    "run.compile",
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
)


def provenance() -> dict[str, Any]:
    """Where a run comes from: command, commit, versions, hardware. No paths of the machine beyond what was typed."""
    root = Path(__file__).resolve().parents[1]
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    cuda = torch.cuda.is_available()
    return {
        "argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "commit": git.stdout.strip() or None,
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
    """A run's folder, locked while a run writes into it (the lock dies with its process)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.figures = path / "checkpoints", path / "figures"
        self._lock: IO[str] | None = None

    @property
    def config_path(self) -> Path:
        """The resolved configuration and provenance."""
        return self.path / "config.json"

    def claim(self, *, resume: bool) -> None:
        """Make the folder, or take an existing one to resume; refuse to mix two runs.

        Raises:
            ValueError: it holds a run and ``resume`` is off, or something else; another process works in it.
        """
        self._refuse_a_run(resume)
        if self.path.exists() and not self.config_path.exists():
            # hidden: the lock, and what a kill during the first write left
            visible = [p.name for p in self.path.iterdir() if not p.name.startswith(".")] if self.path.is_dir() else []
            foreign = visible if self.path.is_dir() else [self.path.name]
            if foreign:
                raise ValueError(
                    f"{self.path} exists and holds no run ({foreign[0]} is there); choose another --run-dir"
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise ValueError(
                f"the run folder {self.path} can't be written ({error.strerror}); choose another --run-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(
                f"another process is training in {self.path}; wait for it or choose another --run-dir"
            ) from None
        try:
            self._refuse_a_run(resume)  # again: another process may have come, and gone, in between
        except ValueError:
            self.release()
            raise
        for leftover in self.path.rglob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def _refuse_a_run(self, resume: bool) -> None:
        if self.config_path.exists() and not resume:
            raise ValueError(
                f"{self.path} already holds a run; add --resume auto to go on with it, or choose another --run-dir"
            )

    def release(self) -> None:
        """Let another run have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def write_json(self, name: str, content: Any) -> None:
        """Write ``name`` (JSON, atomically)."""
        checkpoint.write_text(self.path / name, json.dumps(plain(content), indent=1) + "\n")

    def read_json(self, name: str) -> Any:
        """Read ``name``.

        Raises:
            ValueError: it is missing or no JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} has no {name}, so it is no run folder; give the folder of a run (runs/...)"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({str(error)[:80]}); restore it or start a new run") from error


def write_config(folder: RunFolder, config: SharedConfig, dataset: datasets.Dataset) -> None:
    """Record everything that made this run: configuration, image spec, data recipe, provenance."""
    spec = dataset.spec
    folder.write_json(
        "config.json",
        {
            "format": 1,
            "family": family_of(config).name,
            "config": to_json(config),
            "spec": {"channels": spec.channels, "height": spec.height, "width": spec.width, "num_bits": spec.num_bits},
            "data": {"name": dataset.name, "num_images": len(dataset), "recipe": dataset.recipe},
            **provenance(),
        },
    )


@dataclass(frozen=True)
class SavedRun:
    """What a finished or interrupted run left: its configuration and how to get its model."""

    folder: RunFolder
    record: dict[str, Any]
    family: Family
    config: SharedConfig
    spec: datasets.ImageSpec

    def new_model(self) -> VAE:
        """The model of this run with fresh weights."""
        return self.family.build_model(self.config, self.spec)

    def load_model(
        self, device: torch.device, *, weights: str = "auto", path: Path | None = None
    ) -> tuple[VAE, int, Path]:
        """The trained model in eval mode, its optimiser step, and the checkpoint that it came from.

        Args:
            device: where it goes.
            weights: "auto" takes the averaged weights if there are any, "raw" the trained ones.
            path: a certain checkpoint; default the newest valid one.

        Raises:
            ValueError: there is no valid checkpoint, or it does not fit the model (keys named).
        """
        if path is not None:
            content = checkpoint.load(path)
        else:
            found = next(
                checkpoint.newest_valid(
                    self.folder.checkpoints, lambda text: print(f"warning: {text}", file=sys.stderr)
                ),
                None,
            )
            if found is None:
                raise ValueError(f"{self.folder.path} has no valid checkpoint yet; train it first")
            path, content = found
        averaged = weights == "auto" and content.get("ema") is not None
        model = self.new_model()
        load_state(model, content["ema"] if averaged else content["model"], str(path))
        module = as_module(model)
        return module.to(device).eval().requires_grad_(False), int(content["step"]), path  # type: ignore[return-value]


def as_module(model: Any) -> torch.nn.Module:
    """A VAE as the module that it is."""
    assert isinstance(model, torch.nn.Module)
    return model


def load_state(model: Any, state: dict[str, torch.Tensor], where: str) -> None:
    """Load weights.

    Raises:
        ValueError: naming missing, unexpected and misshapen keys.
    """
    own = as_module(model).state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or unexpected or shapes:
        named = [
            f"{len(keys)} {what} (e.g. {keys[0]})"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(shapes)))
            if keys
        ]
        raise ValueError(
            f"{where} does not fit the model: {', '.join(named)}; the configuration must be the one it was trained with"
        )
    as_module(model).load_state_dict(state)


def open_run(path: Path) -> SavedRun:
    """Read a run folder's configuration.

    Raises:
        ValueError: not a run folder, damaged, or of an unknown family.
    """
    if not path.is_dir():
        raise ValueError(f"there is no run folder {path}; see which runs exist with: ls runs")
    folder = RunFolder(path)
    record = folder.read_json("config.json")
    if not isinstance(record, dict) or str(record.get("family")) not in FAMILIES:
        raise ValueError(f"{folder.config_path} names no known model family; choose a run of {', '.join(FAMILIES)}")
    family = FAMILIES[record["family"]]
    config = from_json(family.config, record.get("config"), str(folder.config_path))
    try:
        spec = datasets.ImageSpec(**record["spec"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder.config_path} has no valid image spec ({error}); restore it") from error
    return SavedRun(folder, record, family, config, spec)


def changed_keys(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that matter and differ between a run's record and what was typed now, as 'key: old -> new'."""
    rows: list[str] = []
    for key in sorted(saved.keys() | now.keys()):
        name, old, new = prefix + key, saved.get(key), now.get(key)
        if any(name == allowed or (allowed.endswith(".") and name.startswith(allowed)) for allowed in MAY_CHANGE):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            rows += changed_keys(old, new, name + ".")
        elif old != new:
            rows.append(f"{name}: {old} -> {new}")
    return rows
