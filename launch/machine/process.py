"""Processes and their memory: children that end with us, and what the C library does with freed pages."""

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
"""How long a child that is asked to stop may take: it saves a checkpoint."""

ASKED = 75
"""Exit code of a process that was asked to stop and may be started again."""

_living: set[subprocess.Popen[bytes]] = set()
_lock = threading.RLock()  # a signal's handler may come while this thread holds it
_stopping = threading.Event()


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: IO[str] | None = None,
) -> int:
    """Run a script of ours and wait for it; its exit code, 75 where nothing is started any more.

    Args:
        command: the program and its arguments; its script calls :func:`end_with_parent`.
        env: default this process's.
        cwd: where it runs.
        output: for all that it says; default this process's streams.
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
    """Send SIGTERM to every child, and start no other."""
    with _lock:
        _stopping.set()
        for child in _living:
            child.terminate()


def stop() -> None:
    """End every child: asked first, killed where it does not listen or whoever waits does not want to."""
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
    """Have the kernel send SIGTERM to this process when the one that started it ends, be it by kill -9.

    So for children of :func:`run` and workers of torchrun; a process that a person started is on its own.
    """
    _stopping.clear()
    parent = os.environ.pop(_PARENT, None)
    if not sys.platform.startswith("linux") or (parent is None and "TORCHELASTIC_RUN_ID" not in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != int(parent):
        raise SystemExit(ASKED)  # it ended before the kernel knew


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_THRESHOLDS = (2**31 - 1, 2**25)  # before 2.35 glibc takes no more than half a heap, 32 MiB


def give_back() -> None:
    """Give freed memory back once, so that what is measured from here on is what is asked for from here on."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """Keep freed memory for the next tensor; a step of Burgess' network on a CPU takes an eighth less time (docs/benchmarks).

    The process holds what it needed at most until it ends. Where the user tunes glibc by its variables, or there is
    another C library, nothing changes.
    """
    tuned = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if tuned or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for threshold in _THRESHOLDS:
        if libc.mallopt(_MMAP_THRESHOLD, threshold):
            libc.mallopt(_TRIM_THRESHOLD, _THRESHOLDS[0])  # by itself it would end glibc's own learning, and harm
            return
