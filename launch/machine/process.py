"""Processes and their memory: children that end with their parent, and the C library's handling of freed pages."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_PARENT = "STRATA_PARENT"
PATIENCE_SECONDS = 60.0
"""Seconds that a child gets to stop, because it saves a checkpoint."""

ASKED = 75
"""Exit code of a process that was asked to stop and may be started again."""

_living: set[subprocess.Popen[bytes]] = set()
_lock = threading.RLock()  # reentrant: a signal handler may run while this thread holds it
_stopping = threading.Event()


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: IO[str] | None = None,
) -> int:
    """Run one of our scripts and return its exit code, or 75 if no more children may start.

    Args:
        command: the program and its arguments; the script must call :func:`end_with_parent`.
        env: environment; default this process's.
        cwd: working directory.
        output: destination of stdout and stderr; default this process's streams.
    """
    environment = {**(os.environ if env is None else env), _PARENT: str(os.getpid())}
    with _lock:
        if _stopping.is_set():
            return ASKED
        child = subprocess.Popen(command, env=environment, cwd=cwd, stdout=output, stderr=output)
        _living.add(child)
    try:
        return child.wait()
    finally:
        if child.poll() is not None:
            _living.discard(child)


def ask_to_stop() -> None:
    """Send SIGTERM to every child, and start no more."""
    with _lock:
        _stopping.set()
        for child in _living:
            child.terminate()


def stop() -> None:
    """End every child: ask it to stop, and kill it if it does not, or if the user interrupts the wait."""
    ask_to_stop()
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        for child in list(_living):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for child in list(_living):
            child.kill()
            child.wait()
            _living.discard(child)


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, even by kill -9.

    This holds for children of :func:`run` and workers of torchrun, not for a process that a user started.
    """
    _stopping.clear()
    parent = os.environ.pop(_PARENT, None)
    if not sys.platform.startswith("linux") or (parent is None and "TORCHELASTIC_RUN_ID" not in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != int(parent):
        raise SystemExit(ASKED)  # the parent ended before the request


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_THRESHOLDS = (2**31 - 1, 2**25)  # glibc before 2.35 accepts at most half a heap, 32 MiB


def keep_freed() -> None:
    """Keep freed memory for the next tensor: this shortens a CPU step of Burgess' network by an eighth (docs/benchmarks).

    The process holds its peak memory until it ends. Nothing changes if the user tunes glibc by its environment
    variables, or with another C library.
    """
    tuned = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if tuned or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for threshold in _THRESHOLDS:
        if libc.mallopt(_MMAP_THRESHOLD, threshold):
            # set alone, this would switch off glibc's own adaptation and do harm
            libc.mallopt(_TRIM_THRESHOLD, _THRESHOLDS[0])
            return
