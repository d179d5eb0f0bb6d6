"""Many small trainings in local processes of one thread each; what is done already is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import joblib
import torch

from launch.machine import files
from launch.machine.files import plain

J = TypeVar("J")


def run_all(
    jobs: Sequence[J],
    work: Callable[[J], str | None],
    done: Callable[[J], bool],
    workers: int,
    *,
    threads: bool = False,
) -> list[str]:
    """Do ``work`` for every job that is not ``done``, in order, ``workers`` at once, with a line for each.

    Args:
        jobs: plain values that can travel to another process; the most wanted first.
        work: leaves a record by which ``done`` knows the job, or returns what went wrong; a function of a module,
            unless it runs in threads.
        done: whether a job's record is there and whole.
        workers: how many at once.
        threads: threads of this process, for ``work`` that starts a process itself.

    Returns:
        What went wrong, a line for each job.

    Raises:
        ValueError: fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers}; give 1 or more")
    missing = [job for job in jobs if not done(job)]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are done; {len(missing)} to go", flush=True)
    call = _reported if threads else _alone
    limits: dict[str, Any] = {} if threads else {"inner_max_num_threads": 1}
    faults, started = [], time.monotonic()
    with joblib.parallel_config(backend="threading" if threads else "loky", **limits):
        finished = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch=workers)(
            joblib.delayed(call)(work, job) for job in missing
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


def _reported(work: Callable[[J], str | None], job: J) -> tuple[str, str | None]:
    return str(job), work(job)


def _alone(work: Callable[[J], str | None], job: J) -> tuple[str, str | None]:
    """One job in a process of its own, in one thread."""
    torch.set_num_threads(1)
    return _reported(work, job)


def write_record(path: Path, content: Any) -> None:
    """Write a record (JSON, whole or not at all); not-finite numbers become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(plain(content), indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        ValueError: it is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({str(error)[:80]}); delete it and run the same command again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is no record of a run; delete it and run the same command again")
    return record
