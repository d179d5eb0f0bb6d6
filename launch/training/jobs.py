"""Many trainings on one machine: scripts or functions in separate processes, distributed over its GPUs or cores.

Completed jobs are skipped, so repeating the command continues a stopped sweep or study.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import joblib
import torch

from launch.machine import files, process

LAUNCH = Path(__file__).resolve().parents[1]
CONNECT_SECONDS = 20
J = TypeVar("J")
Script = Literal["train_nvae", "train_flat_vae"]


def run_all(
    jobs: Sequence[J],
    work: Callable[[J], str | None],
    done: Callable[[J], bool],
    workers: int,
    *,
    threads: bool = False,
    cluster: str | None = None,
) -> list[str]:
    """Run all unfinished jobs, several at once, and print a line for each.

    Args:
        jobs: plain values that can be sent to another process, the most important first.
        work: does a job and leaves the record that ``done`` looks for, or returns an error message. It must be a
            module-level function unless ``threads`` is set.
        done: True if a job's record exists and is complete.
        workers: number of jobs at once.
        threads: use threads of this process, for work that starts processes itself.
        cluster: address of a Dask scheduler, such as tcp://host:8786, whose workers do the jobs instead. They need this
            checkout and the jobs' folders under the same paths; their number, not ``workers``, determines how many run at once.

    Returns:
        One error message per failed job.

    Raises:
        ValueError: fewer than one worker; no scheduler at the address, or Dask is not installed.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers}; give 1 or more")
    missing = [job for job in jobs if not done(job)]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are done; {len(missing)} to go", flush=True)
    faults, started = [], time.monotonic()
    with _backend(cluster, threads=threads) as most:
        workers = most or workers
        finished = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch=workers)(
            joblib.delayed(_reported)(work, job, threads) for job in missing
        )
        for count, (name, fault) in enumerate(finished, start=1):
            seconds = time.monotonic() - started
            left = seconds / count * (len(missing) - count)
            print(
                f"{count}/{len(missing)}  {name}  {fault or 'done'}  {seconds:.0f} s, about {left:.0f} s left",
                flush=True,
            )
            faults += [f"{name}: {fault}"] if fault else []
    return faults


@contextlib.contextmanager
def _backend(cluster: str | None, *, threads: bool) -> Iterator[int | None]:
    """Let joblib use threads, processes, or a cluster; yield the number of a cluster's threads."""
    if cluster is None:
        limits: dict[str, Any] = {} if threads else {"inner_max_num_threads": 1}
        with joblib.parallel_config(backend="threading" if threads else "loky", **limits):
            yield None
        return
    try:
        import distributed
    except ImportError:
        raise ValueError("--dask needs Dask, which is not installed; pip install distributed") from None
    try:
        client: Any = distributed.Client(cluster, timeout=CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--dask {cluster} does not answer ({error}); start dask scheduler and workers first"
        ) from None
    with client, joblib.parallel_config(backend="dask"):
        num_threads = sum(client.nthreads().values())
        if not num_threads:
            raise ValueError(f"--dask {cluster} has no workers; start some with: dask worker {cluster} --nthreads 1")
        yield num_threads


def _reported(work: Callable[[J], str | None], job: J, threads: bool) -> tuple[str, str | None]:
    """Do a job, in a process of its own with one thread; return its name and the error, if any."""
    if not threads:
        torch.set_num_threads(1)
    return str(job), work(job)


@dataclass(frozen=True)
class ScriptRun:
    """A run of a training script, named after its folder; ``arguments`` exclude the folder and --resume."""

    script: Script
    arguments: tuple[str, ...]
    folder: Path

    def __str__(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        """File for the script's output."""
        return self.folder.parent / "logs" / f"{self}.txt"

    @property
    def all_arguments(self) -> tuple[str, ...]:
        """The flags with the run folder and --resume."""
        return (*self.arguments, "--run-dir", str(self.folder), "--resume", "auto")

    @property
    def max_steps(self) -> int:
        """Its number of steps, the value of --max-steps."""
        return int(self.arguments[self.arguments.index("--max-steps") + 1])

    def is_done(self) -> bool:
        """True if the training is complete."""
        return (self.folder / "summary.json").exists()


class Devices:
    """A pool that lends the GPU that has been idle longest; without GPUs each process gets one core.

    On a worker of a cluster nothing is lent: the worker's environment determines its device.
    """

    def __init__(self, workers: int | None) -> None:
        typed = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        gpus = typed.split(",")[:count] if typed else [str(i) for i in range(count)]
        self.workers = workers or len(gpus) or os.cpu_count() or 1
        self._free: queue.SimpleQueue[dict[str, str]] | None = queue.SimpleQueue()
        for i in range(self.workers):
            self._free.put({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {"OMP_NUM_THREADS": "1"})

    def __getstate__(self) -> dict[str, Any]:
        return {"workers": self.workers, "_free": None}

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a command on the next free device, with its output in ``log``; return the exit code."""
        own = {} if self._free is None else self._free.get()
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("w") as said:
                return process.run(command, env=os.environ | own, output=said)
        finally:
            if self._free is not None:
                self._free.put(own)


def train_all(runs: Sequence[ScriptRun], workers: int | None, cluster: str | None = None) -> list[str]:
    """Train the runs that are not done, several at once; return one error message per failed run.

    Args:
        runs: the most important first.
        workers: number of runs at once; None takes one per GPU, or without a GPU one single-threaded run per core.
        cluster: address of a Dask scheduler whose workers train them instead, as for ``run_all``.
    """
    devices = Devices(workers)
    work = functools.partial(train, devices=devices)
    return run_all(runs, work, ScriptRun.is_done, devices.workers, threads=True, cluster=cluster)


def train(run: ScriptRun, devices: Devices) -> str | None:
    """Train a run on the next free device, or continue it; return the error that ended it, if any."""
    command = [sys.executable, str(LAUNCH / f"{run.script}.py"), *run.all_arguments]
    return fault(devices.run(command, run.log), run.log)


def fault(code: int, log: Path) -> str | None:
    """The error that ended a process, in one line; None if its exit code is 0."""
    if code == 0:
        return None
    said = files.read(log, lambda file: file.read().decode(errors="replace"), remedy="see the log")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    return f"exit code {code}, {errors[-1][7:] if errors else 'no message'} (full output: {log})"


def claim(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Record in ``folder / name`` the settings that all its runs share; refuse a folder whose runs have others.

    Raises:
        ValueError: the folder belongs to runs with other settings, which the message lists.
    """
    path = folder / name
    if not path.exists():
        files.write_json(path, record)
    elif (there := files.read_json(path)) != record:
        different = [key for key in there.keys() | record.keys() if there.get(key) != record.get(key)]
        values = {key: there.get(key) for key in sorted(different)}
        said = ", ".join(
            f"{key} {shlex.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in values.items()
        )
        raise ValueError(f"{folder} was made with {said}; use the same to continue it, or choose another --out")
