from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from launch.console import errors
from launch.machine import process

PAGE_FAULTS = """
import os, resource, sys, torch
from launch.machine import process
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def count():
    for _ in range(30):
        torch.ones(2**21)
    before = faults()
    for _ in range(10):
        torch.ones(2**21)
    print(faults() - before, flush=True)
for case in ("kept", "as glibc does", "tuned by the user"):
    pid = os.fork()
    if pid == 0:
        if case == "tuned by the user":
            os.environ["MALLOC_ARENA_MAX"] = "4"
        if case != "as glibc does":
            process.keep_freed()
        count()
        os._exit(0)
    os.waitpid(pid, 0)
"""


def page_faults() -> list[int]:
    """Faults of ten tensors of 8 MiB, made and freed one after the other, in a fork for each case."""
    tuning = ("GLIBC_TUNABLES", "MALLOC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(tuning)}
    command = [sys.executable, "-c", PAGE_FAULTS]
    done = subprocess.run(command, cwd=errors.ROOT, env=clean, capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_serves_the_next_tensor() -> None:
    kept, as_glibc_does, tuned = page_faults()
    assert kept < 100
    assert tuned >= as_glibc_does // 2, "the user's tuning counts"


@pytest.mark.parametrize(("most", "kept"), [(2**31 - 1, 2**31 - 1), (2**25, 2**25), (0, None)])
def test_an_older_glibc_gets_a_size_that_it_accepts(
    most: int, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only the trim threshold is set, glibc stops adapting its mmap threshold, and page faults increase."""
    took: dict[int, int] = {}

    class Libc:
        def mallopt(self, option: int, value: int) -> int:
            if option == process._MMAP_THRESHOLD and value > most:
                return 0
            took[option] = value
            return 1

    for name in [name for name in os.environ if name.startswith(("GLIBC_TUNABLES", "MALLOC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc())
    process.keep_freed()
    assert took.get(process._MMAP_THRESHOLD) == kept
    assert (process._TRIM_THRESHOLD in took) == (kept is not None)
