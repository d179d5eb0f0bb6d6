"""Sweep: any flag of a training script over a list of values and seeds, one table, one plot, one recommended value.

Every run is the training script itself with a run folder of its own. Finished runs are skipped and stopped ones resumed,
so the same command goes on, with more values or seeds too. What follows -- goes to the training script.

Examples:
  python launch/sweep.py --values 1 2 4 8 -- --dataset dsprites --preset burgess --objective beta --max-steps 20000
  python launch/sweep.py --flag latent-dim --values 2 5 10 --seeds 5 --out runs/sizes -- --dataset frey
"""

from __future__ import annotations

import math
import os
import queue
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch

import metrics
from flat_vae import FlatVAE
from launch import cli, config, evaluation, flat_presets, latent_figures, presets, sweep_report
from launch.config import SharedConfig
from launch.runs import RunFolder, open_run
from launch.studies import jobs

OWN_FLAGS = ("seed", "run-dir", "resume")  # of the training script, which the sweep sets


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What varies, and where to."""

    values: tuple[str, ...]
    """Values of the flag; several numbers for one value are joined by commas (latent-groups: 3,3 2,4)."""
    flag: str = "beta"
    """Flag of the training script, without its dashes."""
    seeds: int = 3
    """Seeds 0, 1, ... of each value."""
    out: Path = Path("runs/sweep")
    """Folder of the runs, their logs, and the report: table.md, sweep.png, results.json."""
    script: Literal["train_flat_vae", "train_nvae"] = "train_flat_vae"
    """Training script."""
    workers: int | None = None
    """Runs at once; default one for each GPU, or without a GPU one (of one thread) for each core."""
    images: int = 10_000
    """Test images that MIG and covariance distance are measured on (flat VAEs)."""

    def __post_init__(self) -> None:
        for name in ("seeds", "images"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}; give 1 or more")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers {self.workers}; give 1 or more")
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(f"--values {' '.join(self.values)}; give each value once, at least one")
        if self.flag in OWN_FLAGS:
            raise ValueError(f"--flag {self.flag} is set by the sweep itself; choose another flag, or --seeds")


@dataclass(frozen=True)
class Job:
    """One run of the sweep."""

    out: Path
    flag: str
    value: str
    seed: int

    def __str__(self) -> str:
        return f"{self.flag}-{self.value}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.out / str(self)

    @property
    def log(self) -> Path:
        """What the script said."""
        return self.out / "logs" / f"{self}.txt"

    def flags(self) -> list[str]:
        """What this run adds to the arguments that all share."""
        own = ["--seed", str(self.seed), "--run-dir", str(self.folder), "--resume", "auto"]
        return [f"--{self.flag}", *self.value.split(","), *own]

    def is_done(self) -> bool:
        """Whether its training is complete."""
        return (self.folder / "summary.json").exists()


def _defaults(script: str, typed: list[str]) -> SharedConfig:
    """The preset that the training script would take for what is typed."""
    if script == "train_nvae":
        return presets.nvae(*config.typed_preset(typed))
    return flat_presets.flat_vae(typed)[1]


def _check(sweep: SweepConfig, arguments: Sequence[str]) -> None:
    """Refuse, before anything is trained, arguments that the training script would refuse."""
    for name in (*OWN_FLAGS, sweep.flag):
        if config.typed_value(name, list(arguments)) is not None:
            raise ValueError(f"--{name} stands behind -- and is set by the sweep; leave it out there")
    for value in sweep.values:
        typed = [*arguments, *Job(sweep.out, sweep.flag, value, 0).flags()]
        default = _defaults(sweep.script, typed)
        config.parse(type(default), default, typed, prog=f"{sweep.script}.py", description="")


def _claim(sweep: SweepConfig, arguments: Sequence[str]) -> None:
    """Note what all runs share; refuse a folder of another sweep."""
    record = {"script": sweep.script, "flag": sweep.flag, "arguments": list(arguments)}
    path = sweep.out / "sweep.json"
    if not path.exists():
        jobs.write_record(path, record)
    elif jobs.read_record(path) != record:
        there = jobs.read_record(path)
        raise ValueError(
            f"{sweep.out} holds another sweep (--flag {there.get('flag')} -- {shlex.join(there.get('arguments', []))}); "
            "repeat its arguments to go on with it, or choose another --out"
        )


class Devices:
    """GPUs handed out to runs, each to the run that has waited longest; without GPUs, one core each."""

    def __init__(self, workers: int | None) -> None:
        typed = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        names = typed.split(",")[:count] if typed else [str(i) for i in range(count)]
        self.workers = workers or len(names) or os.cpu_count() or 1
        self._free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for i in range(self.workers if names else 0):
            self._free.put(names[i % len(names)])
        self._has_gpus = bool(names)

    def run(self, command: list[str], log: Path) -> int:
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


def _fault(code: int, log: Path) -> str | None:
    """What a run that ended with ``code`` said last, in a line."""
    if code == 0:
        return None
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return f"exit code {code}, {errors[-1][7:] if errors else 'no message'} (all of it: {log})"


def measure(run: Path, num_images: int) -> dict[str, Any]:
    """The sweep's numbers of a finished run, from its summary and, for a flat VAE, from codes of test images.

    Kept in ``sweep_scores.json`` beside the checkpoint that they belong to.
    """
    folder = RunFolder(run)
    summary = folder.read_json("summary.json")
    path = run / "sweep_scores.json"
    key = {"step": summary["step"], "images": num_images}
    if path.exists() and (kept := jobs.read_record(path)).get("of") == key:
        return dict(kept["scores"])
    valid = summary["valid"]
    scores = {name: valid[name] for name in ("distortion", "rate", "elbo", "bits_per_dim")}
    scores["active_units"] = float(valid["active_units"])
    scores |= _representation(run, num_images)
    folder.write_json(path.name, {"of": key, "scores": scores})
    return scores


@torch.no_grad()
def _representation(run: Path, num_images: int) -> dict[str, float]:
    """MIG (histogram, where there are factors) and covariance distance of the means of test images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _, _ = open_run(run).load_model(device)
    if not isinstance(model, FlatVAE):
        return {}
    data = open_run(run).config.data.open("test")
    rows = np.random.default_rng(0).permutation(len(data))[:num_images]
    parts = [
        latent_figures.encode(model, evaluation.to_float(data.images(part), data.spec, device))
        for part in np.array_split(rows, math.ceil(len(rows) / 512))
    ]
    means, stds = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "std"))
    scores = {"covariance_distance": metrics.covariance_distance(means, stds.square()).score}
    if data.factor_names:
        scores["mig"] = metrics.mig(means, data.factors(rows)).score
    return scores


def main(arguments: list[str]) -> None:
    """Train what is missing, measure, write the report."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, shared = arguments[:end], arguments[end + 1 :]
    sweep = config.parse(SweepConfig, None, own, prog="sweep.py", description=__doc__ or "")
    _check(sweep, shared)
    _claim(sweep, shared)
    runs = [Job(sweep.out, sweep.flag, value, seed) for seed in range(sweep.seeds) for value in sweep.values]
    devices = Devices(sweep.workers)
    script = str(Path(__file__).with_name(f"{sweep.script}.py"))

    def work(job: Job) -> str | None:
        return _fault(devices.run([sys.executable, script, *shared, *job.flags()], job.log), job.log)

    faults = jobs.run_all(runs, work, Job.is_done, devices.workers, threads=True)
    results = {v: [measure(j.folder, sweep.images) for j in runs if j.value == v and j.is_done()] for v in sweep.values}
    results = {value: found for value, found in results.items() if found}
    if results:
        print("\n" + sweep_report.write(sweep.out, sweep.flag, results))
    if faults:
        raise ValueError(
            f"{len(faults)} of {len(runs)} runs failed ({faults[0]}); mend it and give the same command again"
        )


if __name__ == "__main__":
    cli.main(main)
