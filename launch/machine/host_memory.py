"""What glibc does with freed memory: by default it gives large blocks back, and the next tensor faults every page in anew."""

from __future__ import annotations

import ctypes
import os
import platform

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
