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
import resource, torch
from launch.machine import process
{call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    torch.ones(2**21)
before = faults()
for _ in range(10):
    torch.ones(2**21)
print(faults() - before)
"""


def page_faults(call: str, **variables: str) -> int:
    """Faults of ten tensors of 8 MiB, made and freed one after the other."""
    command = [sys.executable, "-c", PAGE_FAULTS.format(call=call)]
    tuning = ("GLIBC_TUNABLES", "MALLOC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(tuning)}
    done = subprocess.run(command, cwd=errors.ROOT, env=clean | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_serves_the_next_tensor() -> None:
    assert page_faults("process.keep_freed()") < 100
    as_glibc_does = page_faults("")
    assert page_faults("process.keep_freed()", MALLOC_ARENA_MAX="4") >= as_glibc_does // 2, "the user's tuning counts"


@pytest.mark.parametrize(("most", "kept"), [(2**31 - 1, 2**31 - 1), (2**25, 2**25), (0, None)])
def test_an_older_glibc_gets_what_it_takes(most: int, kept: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
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
