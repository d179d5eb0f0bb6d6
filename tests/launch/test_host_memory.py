from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from launch import cli

PAGE_FAULTS = """
import resource, torch
from launch import host_memory
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
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(command, cwd=cli.ROOT, env=clean | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_serves_the_next_tensor() -> None:
    assert page_faults("host_memory.keep_freed()") < 100
    as_glibc_does = page_faults("")
    assert page_faults("host_memory.keep_freed()", MALLOC_ARENA_MAX="4") >= as_glibc_does // 2, (
        "the user's tuning counts"
    )
